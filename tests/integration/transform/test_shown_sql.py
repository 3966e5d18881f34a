"""People see the SQL that runs: in `dbt compile`, `dbt show` and the log of `loader transform`."""

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from loader.events.segment import parse_lines
from loader.postgres.database import Database
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.settings import Settings
from tests.conftest import loader_here
from tests.support.dbt_runs import copied_project, run, run_dbt

CALL = (
    b'{"type":"track","event":"Email Opened","messageId":"a","userId":"u","properties":{"campaignId":7,"mood":"good"}}'
)


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection to a database with an event that has a property without a declared column."""
    with small.connect(autocommit=True) as opened:
        with SchemaRegistry().transaction(opened) as seen:
            land(opened, "iterable", "file", parse_lines(CALL, 0), seen)
        yield opened


def test_the_compiled_model_is_the_select_of_the_run(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """The found column is in `target/compiled`, in `dbt show`, and in the insert of `target/run`."""
    run(small, small_settings, "email_opened")
    project = copied_project(small_settings)
    code, output = run_dbt(small.url, project, "compile", "--select", "email_opened")
    assert code == 0, output
    compiled = next(project.glob("target/compiled/*/models/iterable/email_opened.sql")).read_text(encoding="utf-8")
    row = connection.execute(compiled).fetchone()  # type: ignore[call-overload]
    served = connection.execute("select * from iterable.email_opened").fetchone()
    assert row is not None
    assert served is not None
    assert (row[0], row[-1], len(row)) == ("a", "good", len(served))

    code, output = run_dbt(small.url, project, "show", "--select", "email_opened", "--output", "json")
    assert code == 0, output
    assert '"mood": "good"' in output

    land_again = CALL.replace(b'"a"', b'"b"')
    with SchemaRegistry().transaction(connection) as seen:
        land(connection, "iterable", "file", parse_lines(land_again, 0), seen)
    code, output = run_dbt(small.url, project, "run", "--select", "email_opened", artifacts=True)
    assert code == 0, output
    statement = next(project.glob("target/run/*/models/iterable/email_opened.sql")).read_text(encoding="utf-8")
    assert "insert into" in statement
    assert '"mood"' in statement
    results = json.loads((project / "target" / "run_results.json").read_text(encoding="utf-8"))["results"]
    [model] = [result for result in results if result["unique_id"].startswith("model.")]
    assert model["adapter_response"]["rows_affected"] == 1


def test_the_command_may_log_its_statements(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """The log has the insert, and the command prints the path of the log."""
    assert connection.info.dbname in small.url
    done = loader_here(small_settings)("transform", "--select", "email_opened", "--log-sql")
    assert done.returncode == 0, done.stderr
    path = Path(done.stderr.partition("The statements are in ")[2].split("\n")[0].rstrip("."))
    assert "insert into" in path.read_text(encoding="utf-8")
