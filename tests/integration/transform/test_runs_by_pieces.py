"""Runs of some models each, and runs of a project that imports this one, as an orchestrator makes them."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
import pytest
import yaml

from loader.postgres.database import Database
from loader.postgres.statements import read_statement
from loader.settings import Settings
from loader.transform import scheduler
from tests.integration.conftest import Dbt
from tests.support.dbt_runs import run_dbt
from tests.support.factories import insert_event
from tests.support.folders import ROOT
from tests.support.waiting import wait_until, waiting

NEWS = read_statement(scheduler.__file__, "news")
PIECES = ("tracks", "email_delivered", "email_opened", "found_collections")


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit."""
    with small.connect(autocommit=True) as opened:
        yield opened


def has_news(connection: psycopg.Connection) -> bool:
    """Return whether the scheduler would run."""
    row = connection.execute(NEWS).fetchone()  # type: ignore[call-overload]
    assert row is not None
    return bool(row[0])


def test_runs_of_each_model_count_as_one_whole_run(dbt: Dbt, connection: psycopg.Connection) -> None:
    """The scheduler has nothing to do after them. An event that one of them has not read is news."""
    insert_event(connection, "email_opened", "a")
    for number, piece in enumerate(PIECES):
        assert has_news(connection), number
        assert dbt("run", "--select", piece)[0] == 0
    assert not has_news(connection)
    whole = connection.execute(
        "select filled from raw.transforms where whole order by started_at desc limit 1"
    ).fetchone()
    assert whole == (["tracks"],)

    for piece in PIECES[:2]:
        assert dbt("run", "--select", piece)[0] == 0
    insert_event(connection, "email_opened", "b")
    for piece in PIECES[2:]:
        assert dbt("run", "--select", piece)[0] == 0
    assert has_news(connection)
    for piece in PIECES[:2]:
        assert dbt("run", "--select", piece)[0] == 0
    assert not has_news(connection)


def test_runs_that_end_at_the_same_time_both_count(connection: psycopg.Connection, small: Database) -> None:
    """The last of two runs sees the models that the first has filled."""
    start = "insert into raw.transforms (id, snapshot) values (%s, pg_current_snapshot())"
    end = "select raw.end_transform(%s, null, array[%s], array['a', 'b'])"
    for name in ("a", "b"):
        connection.execute(start, [name])
    with small.connect() as first, small.connect() as second, ThreadPoolExecutor(1) as beside:
        first.execute(end, ["a", "a"])
        later = beside.submit(second.execute, end, ["b", "b"])
        wait_until(lambda: waiting(connection) > 0, "the second run to wait for the first")
        first.commit()
        later.result()
        second.commit()
    assert connection.execute("select id from raw.transforms where whole and id in ('a', 'b')").fetchall() == [("a",)]


@pytest.fixture
def importer(small_project: Path, small_settings: Settings, tmp_path: Path) -> Dbt:
    """Run dbt in a project of a team that imports this project, and has a model of its own that fails."""
    project = tmp_path / "team"
    (project / "models").mkdir(parents=True)
    (project / "models" / "broken.sql").write_text("{{ config(materialized='table') }} select 1 / 0 as broken\n")
    (project / "models" / "opens.sql").write_text("select count(*) as opens from {{ ref('email_opened') }}\n")
    settings = {"name": "team", "version": "1.0.0", "profile": "iterable_warehouse", "model-paths": ["models"]}
    (project / "dbt_project.yml").write_text(yaml.safe_dump(settings))
    (project / "packages.yml").write_text(yaml.safe_dump({"packages": [{"local": str(small_project)}]}))
    shutil.copy(ROOT / "dbt_project" / "profiles.yml", project)
    dbt = partial(run_dbt, small_settings.database_url, project)
    code, output = dbt("deps")
    assert code == 0, output
    return dbt


def test_a_teams_project_may_import_the_loaders_dbt_project(importer: Dbt, connection: psycopg.Connection) -> None:
    """A failed model of the team is no failure of the tables. A run of the team's models alone leaves no record."""
    insert_event(connection, "email_opened", "a")
    code, output = importer("run")
    assert code == 1, output
    assert "division by zero" in output
    last = "select status, whole from raw.transforms order by started_at desc limit 1"
    assert connection.execute(last).fetchone() == ("success", True)
    assert connection.execute("select opens from public.opens").fetchone() == (1,)

    count = connection.execute("select count(*) from raw.transforms").fetchone()
    code, output = importer("run", "--select", "opens")
    assert code == 0, output
    assert connection.execute("select count(*) from raw.transforms").fetchone() == count
