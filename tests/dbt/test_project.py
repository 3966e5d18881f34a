"""The dbt project works from its own folder with only the connection set."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import Database, connection_environment
from loader.settings import Settings
from tests.support.dbt_runs import PROJECT, run_dbt, started, succeed


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new copy of the dbt project, into whose folder dbt may write."""
    folder = tmp_path_factory.mktemp("project") / "dbt_project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("target", "logs"))
    return folder


def land(connection: psycopg.Connection, *message_ids: str) -> None:
    """Land events without a collector or file."""
    for message_id in message_ids:
        connection.execute(
            "insert into raw.events (source, collection, message_id, payload)"
            ' values (\'iterable\', \'email_opened\', %s, \'{"event": "Email Opened", "userId": "u"}\')',
            (message_id,),
        )


def kinds_and_states(project: Path) -> tuple[set[str], set[str]]:
    """Return the kinds of the nodes of the last invocation, and the states of those that dbt runs."""
    results = json.loads((project / "target" / "run_results.json").read_text(encoding="utf-8"))["results"]
    kinds = {result["unique_id"].split(".")[0] for result in results}
    # dbt lists an exposure without running anything.
    return kinds, {result["status"] for result in results if not result["unique_id"].startswith("exposure.")}


def check_description(project: Path) -> None:
    """Check that the generated documentation describes a column."""
    catalog = json.loads((project / "target" / "catalog.json").read_text(encoding="utf-8"))
    opened = catalog["nodes"]["model.iterable_warehouse.email_opened"]
    assert opened["columns"]["campaign_id"]["comment"].startswith("Campaign of Iterable")


def test_a_build_of_some_models_fills_tests_and_describes_them(project: Path, served: Database) -> None:
    """`dbt build` fills the selected tables and runs their tests; selections, rebuilds and docs work."""
    dbt = partial(run_dbt, served.url, project, artifacts=True)
    with served.connect(autocommit=True) as connection:
        land(connection, "a", "b")
        code, output = dbt("build", "--select", "email_opened", "tracks")
        assert code == 0, output
        kinds, states = kinds_and_states(project)
        assert {"model", "test", "operation"} <= kinds
        assert states == {"success", "pass"}
        assert connection.execute("select id from iterable.email_opened order by id").fetchall() == [("a",), ("b",)]

        land(connection, "c")
        assert dbt("run", "--select", "email_opened")[0] == 0
        assert connection.execute("select count(*) from iterable.email_opened").fetchone() == (3,)
        assert connection.execute("select count(*) from iterable.tracks").fetchone() == (2,)
        assert dbt("run", "--full-refresh", "--select", "email_opened", "tracks")[0] == 0
        assert connection.execute("select count(*) from iterable.tracks").fetchone() == (3,)

        code, output = dbt("docs", "generate", "--select", "email_opened")
        assert code == 0, output
        check_description(project)


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_build_fills_tests_and_describes_everything(project: Path, served: Database) -> None:
    """The program `dbt build` fills some sixty tables, runs two hundred tests, and describes all."""
    with served.connect(autocommit=True) as connection:
        land(connection, "a", "b")
        program = [str(Path(sys.executable).parent / "dbt"), "build"]
        with started(program, connection_environment(served.url), project) as built:
            succeed(built)
        kinds, states = kinds_and_states(project)
        assert kinds == {"model", "test", "unit_test", "operation", "exposure"}
        assert states == {"success", "pass"}
        assert connection.execute("select id from iterable.email_opened order by id").fetchall() == [("a",), ("b",)]

    code, output = run_dbt(served.url, project, "docs", "generate", parsed_as={})
    assert code == 0, output
    check_description(project)


def test_the_tests_of_the_project_find_missing_rows(project: Path, served: Database) -> None:
    """`dbt test` fails if a table lacks rows that it had."""
    dbt = partial(run_dbt, served.url, project)
    with served.connect(autocommit=True) as connection:
        land(connection, "a", "b")
        assert dbt("run", "--select", "email_opened", "tracks")[0] == 0
        connection.execute("delete from iterable.email_opened where id = 'a'")
    code, output = dbt("test", "--select", "email_opened", "tracks")
    assert code == 1
    assert "matches_raw_email_opened" in output
    assert "tracks_is_the_union" in output


def test_a_missing_raw_schema_gets_an_error_with_loader_migrate(project: Path, empty_url: str) -> None:
    """The error names the database and the command that creates the schema."""
    code, output = run_dbt(empty_url, project, "run")
    assert code != 0
    assert f"The raw schema is not in database {empty_url.rsplit('/', 1)[1]}" in output
    assert "loader migrate" in output


def test_an_older_raw_schema_gets_an_error_with_loader_migrate(project: Path, settings: Settings) -> None:
    """The project of a new version needs the functions of that version."""
    with psycopg.connect(settings.database_url) as connection:
        connection.execute("drop function raw.end_transform")
    code, output = run_dbt(settings.database_url, project, "run")
    assert code != 0
    assert "or is too old" in output
    assert "loader migrate" in output
