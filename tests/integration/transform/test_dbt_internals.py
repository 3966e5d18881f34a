"""The product changes dbt's order of the tables and dbt's connections."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.dbt import log_file
from tests.support.dbt_runs import run
from tests.support.waiting import wait_until

# Runs each command of a line, and says when it has ended. All commands share the imports.
COMMANDS = """
import shlex, sys
from loader.cli.app import main
for line in sys.stdin:
    main(shlex.split(line), standalone_mode=False)
    print("done", flush=True)
"""


def test_a_run_begins_with_tracks(small: Database, small_settings: Settings) -> None:
    """`tracks` takes as long as all other tables together, so it must not end alone."""
    log = log_file(small_settings)
    # Another test's database had this name, and its log is here.
    log.unlink(missing_ok=True)
    run(small, small_settings.model_copy(update={"threads": 1}))
    begun = re.findall(r"START sql collection model iterable\.(\w+)", log.read_text(encoding="utf-8"))
    assert len(begun) > 1
    assert begun[0] == "tracks"


def test_dbt_asks_for_no_connection_for_each_table(
    small: Database, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of all tables asks for at most one more than a run of one; before the first table, dbt may need one."""
    # The import takes seconds, and the process that distributes the tests runs no dbt.
    from dbt.adapters.postgres.connections import psycopg2  # noqa: PLC0415

    asked: list[object] = []
    connect = psycopg2.connect

    def count(**settings: Any) -> Any:
        asked.append(settings["dbname"])
        return connect(**settings)

    def asked_in_run(*select: str) -> int:
        asked.clear()
        run(small, small_settings.model_copy(update={"threads": 1}), *select)
        return len(asked)

    monkeypatch.setattr(psycopg2, "connect", count)
    of_one = asked_in_run("tracks")
    assert of_one > 1
    assert asked_in_run() <= of_one + 1


@pytest.mark.heavy
def test_a_run_opens_no_connection_for_each_table(
    small: Database, small_settings: Settings, small_project: Path
) -> None:
    """The server counts the sessions of a process with the plain dbt.

    A process that the tests start by a fork has another dbt, which keeps connections anyway. No process with a given
    `executable` starts this way.
    """
    variables = {
        "DATABASE_URL": small_settings.database_url,
        "LOADER_HOME": str(small_settings.home),
        "LOADER_THREADS": "1",
        "PYTHONPATH": str(small_project.parent),
    }
    with (
        small.connect(autocommit=True) as connection,
        subprocess.Popen(
            [sys.executable, "-c", COMMANDS],
            executable=sys.executable,
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        of_one = sessions_of(connection, process, "transform --select tracks")
        of_all = sessions_of(connection, process, "transform")
        process.communicate()
    assert of_one > 1
    assert of_all <= of_one + 1


def sessions_of(connection: psycopg.Connection, process: subprocess.Popen[str], command: str) -> int:
    """Return how many sessions a command opens."""
    assert process.stdin is not None
    assert process.stdout is not None
    before = ended_sessions(connection)
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    while (line := process.stdout.readline()) != "done\n":
        assert line, command
    return ended_sessions(connection) - before


def ended_sessions(connection: psycopg.Connection) -> int:
    """Wait until all other sessions have ended, and return how many the server has counted."""
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    wait_until(lambda: connection.execute(others).fetchone() == (0,))
    connection.execute("select pg_stat_clear_snapshot()")
    row = connection.execute("select sessions from pg_stat_database where datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])
