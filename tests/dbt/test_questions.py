"""The questions that the marts answer: the analyses, and the metrics of the semantic layer."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader.events.segment import parse_lines
from loader.postgres.database import connection_environment, open_database
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.raw.sources import add_source
from loader.sample.events import generate_sample_events, last_sunday
from loader.transform.dbt import transform
from loader.transform.dbt_internals import tidied
from tests.conftest import Loader, MakeOnce, loader_here, own_database
from tests.support.dbt_runs import AS_PARSED, PROJECT, run_dbt
from tests.support.folders import ROOT
from tests.support.sample_marts import VARIABLES, fill_sample_marts

ORDERS = """
conversion_events:
    - {name: order, schema: app, table: order_completed, value: revenue, currency: currency, order_id: order_id}
"""
ANALYSES = sorted(path.stem for path in (PROJECT / "analyses").glob("*.sql"))


@dataclass(frozen=True)
class Answers:
    """A database with marts of few recipients, and a copy of the project with compiled analyses."""

    url: str
    project: Path
    loader: Loader


@pytest.fixture(scope="module")
def answers(
    server: str, home: Path, make_once: MakeOnce, served_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Answers]:
    """Clone the marts of few recipients, and compile the analyses."""
    project = tmp_path_factory.mktemp("questions") / "dbt_project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("target", "logs"))
    make_once("report_template", served_template, fill_sample_marts)
    with own_database(server, home, "report_template") as settings:
        code, output = run_dbt(
            settings.database_url, project, "compile", "--select", "resource_type:analysis", "--vars", VARIABLES
        )
        assert code == 0, output
        with psycopg.connect(settings.database_url) as connection:
            # These messages are older than some analyses ask for, and too few for a hard bounce in each week.
            connection.execute("update iterable_marts.campaign_performance set last_sent_at = now()")
            connection.execute("update iterable_marts.deliverability_daily set hard_bounces = 1")
        yield Answers(settings.database_url, project, loader_here(settings))


@pytest.fixture(scope="module")
def demo(server: str, home: Path, raw_template: str) -> Iterator[Loader]:
    """Fill the marts with all events of the demo."""
    with own_database(server, home, raw_template) as settings, open_database(settings) as database:
        events = generate_sample_events(last_sunday(datetime.now(UTC).date()))
        with database.begin() as connection:
            add_source(connection, "App")
        with database.connect(autocommit=True) as connection:
            for source, calls in (("iterable", events.iterable), ("app", events.app)):
                lines = "\n".join(json.dumps(call) for call in calls).encode()
                with SchemaRegistry().transaction(connection) as seen:
                    land(connection, source, "file", parse_lines(lines, 0), seen)
        filled = transform(database, settings.model_copy(update={"marts": True, "vars": ORDERS}))
        assert not [table for table in filled if table.error]
        yield loader_here(settings)


PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^Mart `(\w+)`:\n\n```sql\n(.*?)\n```\n\n```\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
MARTS = {path.stem for path in (PROJECT / "models" / "marts").glob("*.sql")}


def test_each_mart_answers_a_question_on_the_page() -> None:
    """The page leaves out the internal marts and the days of the metrics."""
    asked = [mart for mart, _, _ in QUESTIONS]
    assert sorted(asked) == sorted(mart for mart in MARTS if not mart.startswith("int_") and mart != "time_spine")


@pytest.mark.parametrize(("query", "answer"), [each[1:] for each in QUESTIONS], ids=[each[0] for each in QUESTIONS])
def test_a_query_of_the_page_has_an_answer(answers: Answers, query: str, answer: str) -> None:
    """The answer for few recipients has the columns that the page shows, and rows."""
    shown = answers.loader("sql", query).stdout.splitlines()
    assert shown[0].split() == answer.splitlines()[0].split()
    assert len(shown) > 2, "only the heading and its rule"


@pytest.mark.heavy
@pytest.mark.parametrize(("query", "answer"), [each[1:] for each in QUESTIONS], ids=[each[0] for each in QUESTIONS])
def test_the_page_shows_the_answer(demo: Loader, query: str, answer: str) -> None:
    """The answers of the demo are the same in each week."""
    shown = demo("sql", query).stdout
    assert [line.rstrip() for line in shown.rstrip().splitlines()] == answer.splitlines()


@pytest.mark.parametrize("analysis", ANALYSES)
def test_an_analysis_has_an_answer(answers: Answers, analysis: str) -> None:
    """It begins with its question, and runs as it is."""
    text = (PROJECT / "analyses" / f"{analysis}.sql").read_text(encoding="utf-8")
    assert text.startswith("-- ")
    assert "?" in text.partition("\n")[0]
    compiled = next(answers.project.glob(f"target/compiled/*/analyses/{analysis}.sql")).read_text(encoding="utf-8")
    with psycopg.connect(answers.url) as connection:
        assert connection.execute(compiled).fetchall()  # type: ignore[call-overload]


def query_metrics(answers: Answers, metrics: Sequence[str], group_by: Sequence[str]) -> list[dict[str, Any]]:
    """Query the semantic layer in this process, as `mf query` does; return the rows."""
    # Only this test needs these modules.
    from dbt_metricflow.cli.cli_configuration import CLIConfiguration  # noqa: PLC0415
    from metricflow.engine.metricflow_engine import MetricFlowQueryRequest  # noqa: PLC0415

    environment = connection_environment(answers.url) | AS_PARSED
    with pytest.MonkeyPatch.context() as patch, chdir(answers.project), tidied():
        for name, value in environment.items():
            patch.setenv(name, value)
        configuration = CLIConfiguration()
        configuration.setup(configure_file_logging=False)
        result = configuration.mf.query(MetricFlowQueryRequest.create(metric_names=metrics, group_by_names=group_by))
    assert result.result_df is not None
    return [dict(zip(result.result_df.column_names, row, strict=True)) for row in result.result_df.rows]


def test_metrics_equal_the_marts(answers: Answers) -> None:
    """Counts, uniques and rates of the semantic layer, grouped as `campaign_performance` is."""
    metrics = ["sends", "delivered", "unique_human_opens", "unique_human_clicks", "delivery_rate", "unsubscribe_rate"]
    code, output = run_dbt(answers.url, answers.project, "parse", artifacts=True)
    assert code == 0, output
    found = {
        (row["message__channel"], int(row["message__campaign_id"] or 0)): [
            round(float(row[name] or 0), 6) for name in metrics
        ]
        for row in query_metrics(answers, metrics, ["message__channel", "message__campaign_id"])
    }
    names = ", ".join(f"coalesce({name}, 0)" for name in metrics)
    with psycopg.connect(answers.url) as connection:
        rows = connection.execute(
            f"select channel, campaign_id, {names} from iterable_marts.campaign_performance where messages > 0"  # type: ignore[arg-type]
        ).fetchall()
    assert len(rows) > len(metrics)
    assert found == {(row[0], row[1]): [round(float(value), 6) for value in row[2:]] for row in rows}


@pytest.mark.heavy
def test_the_command_for_metrics_works_as_typed(answers: Answers) -> None:
    """The command of docs/metrics.md runs in the folder of the project."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    [arguments] = re.findall(r"^    mf (query .*)$", page, re.MULTILINE)
    code, output = run_dbt(answers.url, answers.project, "parse", artifacts=True)
    assert code == 0, output
    environment = connection_environment(answers.url) | AS_PARSED | {"HOME": str(answers.project)}
    command = [str(Path(sys.executable).with_name("mf")), *arguments.split()]
    done = subprocess.run(command, cwd=answers.project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "message__channel" in done.stdout
