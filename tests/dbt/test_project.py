"""The dbt project works from its own folder with nothing set but the connection."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from loader.database import Database, bundled, connection_environment

Dbt = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the dbt project, into whose folder dbt may write as it does by default."""
    folder = tmp_path / "dbt_project"
    shutil.copytree(bundled("dbt_project"), folder, ignore=shutil.ignore_patterns("target", "logs"))
    return folder


def dbt_in(project: Path, url: str) -> Dbt:
    """Return a function that runs dbt in the project's folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).parent / "dbt", "--no-use-colors", *arguments],
            cwd=project,
            env=os.environ | connection_environment(url),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def land(connection: psycopg.Connection, *message_ids: str) -> None:
    """Land events, by whatever way."""
    for message_id in message_ids:
        connection.execute(
            "insert into raw.events (source, collection, message_id, payload)"
            ' values (\'iterable\', \'email_opened\', %s, \'{"event": "Email Opened", "userId": "u"}\')',
            (message_id,),
        )


def test_build_fills_tests_and_describes_everything(project: Path, served: Database) -> None:
    """`dbt build` fills every table and runs all tests; selections, rebuilds and docs work."""
    dbt = dbt_in(project, served.url)
    with served.connect(autocommit=True) as connection:
        land(connection, "a", "b")
        built = dbt("build")
        assert built.returncode == 0, built.stdout
        results = json.loads((project / "target" / "run_results.json").read_text(encoding="utf-8"))["results"]
        kinds = {result["unique_id"].split(".")[0] for result in results}
        assert kinds == {"model", "test", "unit_test", "operation"}
        assert {result["status"] for result in results} == {"success", "pass"}
        assert connection.execute("select id from iterable.email_opened order by id").fetchall() == [("a",), ("b",)]

        land(connection, "c")
        assert dbt("run", "--select", "email_opened").returncode == 0
        assert connection.execute("select count(*) from iterable.email_opened").fetchone() == (3,)
        assert connection.execute("select count(*) from iterable.tracks").fetchone() == (2,)
        assert dbt("build", "--full-refresh").returncode == 0
        assert connection.execute("select count(*) from iterable.tracks").fetchone() == (3,)

        documented = dbt("docs", "generate")
        assert documented.returncode == 0, documented.stdout
        catalog = json.loads((project / "target" / "catalog.json").read_text(encoding="utf-8"))
        opened = catalog["nodes"]["model.iterable_warehouse.email_opened"]
        assert opened["columns"]["campaign_id"]["comment"].startswith("Iterable campaign")


def test_its_own_tests_find_rows_that_went_missing(project: Path, served: Database) -> None:
    """`dbt test` fails when a table lacks rows it has had."""
    dbt = dbt_in(project, served.url)
    with served.connect(autocommit=True) as connection:
        land(connection, "a", "b")
        assert dbt("run").returncode == 0
        connection.execute("delete from iterable.email_opened where id = 'a'")
    tested = dbt("test", "--select", "email_opened", "tracks")
    assert tested.returncode == 1
    assert "matches_raw_email_opened" in tested.stdout
    assert "union_of_collections" in tested.stdout


def test_a_database_without_the_raw_schema_is_told_what_to_do(project: Path, empty_url: str) -> None:
    """The error names the database and the command that mends it."""
    refused = dbt_in(project, empty_url)("run")
    assert refused.returncode != 0
    assert f"The raw schema is not in database {empty_url.rsplit('/', 1)[1]}" in refused.stdout
    assert "loader migrate" in refused.stdout
