"""The product changes dbt's order of the tables and dbt's connections."""

import re
import subprocess
import sys

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.dbt import log_file
from tests.support.dbt_runs import run
from tests.support.waiting import wait_until


def test_a_run_begins_with_tracks(small: Database, small_settings: Settings) -> None:
    """`tracks` takes as long as all other tables together, so it must not end alone."""
    run(small, small_settings)
    log = log_file(small_settings).read_text(encoding="utf-8")
    begun = re.findall(r"START sql collection model iterable\.(\w+)", log)
    assert len(begun) > 1
    assert begun[0] == "tracks"


def test_a_run_opens_no_connection_for_each_table(
    small: Database, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of all tables opens at most one more than a run of one; before the first table, dbt may need one."""
    for name, value in (
        ("LOADER_THREADS", "1"),
        ("DATABASE_URL", small_settings.database_url),
        ("LOADER_HOME", str(small_settings.home)),
    ):
        monkeypatch.setenv(name, value)
    with small.connect(autocommit=True) as connection:
        of_one = sessions_of(connection, "transform", "--select", "tracks")
        of_all = sessions_of(connection, "transform")
    assert of_one > 1
    assert of_all <= of_one + 1


def sessions_of(connection: psycopg.Connection, *arguments: str) -> int:
    """Return how many sessions a command opens, in a process of its own.

    A process that the tests start by a fork has another dbt, which keeps connections anyway. No process with a given
    `executable` starts this way.
    """
    before = ended_sessions(connection)
    done = subprocess.run(
        [sys.executable, "-m", "loader", *arguments], executable=sys.executable, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ended_sessions(connection) - before


def ended_sessions(connection: psycopg.Connection) -> int:
    """Wait until all other sessions have ended, and return how many the server has counted."""
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    wait_until(lambda: connection.execute(others).fetchone() == (0,))
    connection.execute("select pg_stat_clear_snapshot()")
    row = connection.execute("select sessions from pg_stat_database where datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])
