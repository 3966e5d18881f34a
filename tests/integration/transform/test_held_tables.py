"""Held tables: their reasons, the times of their next tries, and their place in `status`."""

from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.scheduler import Schedule
from loader.transform.status import read_status


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit."""
    with small.connect(autocommit=True) as opened:
        yield opened


def test_each_further_try_waits_twice_as_long(connection: psycopg.Connection) -> None:
    """The wait grows from 5 seconds to 5 minutes, until a run has done the work."""
    waits = []
    for _ in range(8):
        connection.execute("select raw.hold_table('email_opened', 'iterable', 'fill', 'it is locked')")
        row = connection.execute(
            "select tries, round(extract(epoch from next_try_at - tried_at)) from raw.held_tables"
        ).fetchone()
        assert row is not None
        waits.append((row[0], int(row[1])))
    assert waits == list(enumerate([5, 10, 20, 40, 80, 160, 300, 300], start=1))
    connection.execute("select raw.release_table('email_opened', 'iterable', 'fill')")
    assert connection.execute("select * from raw.held_tables").fetchall() == []


def test_a_held_table_is_work_for_the_scheduler_when_due(
    connection: psycopg.Connection, small_settings: Settings
) -> None:
    """Before that time the scheduler has no work.

    A table that a run leaves due is not work, because no run can fill it.
    """
    schedule = Schedule(small_settings, 1)
    assert not schedule._has_news(connection)
    connection.execute("select raw.hold_table('email_opened', 'iterable', 'fill', 'it is locked')")
    assert not schedule._has_news(connection)
    connection.execute("update raw.held_tables set next_try_at = clock_timestamp()")
    assert schedule._has_news(connection)
    schedule._unmade = schedule._find_unmade(connection)
    assert not schedule._has_news(connection)


def test_status_lists_held_tables(connection: psycopg.Connection, small: Database) -> None:
    """The list has the work that was not done, and its reason."""
    connection.execute("select raw.hold_table('email_opened', 'iterable', 'columns', 'process 7 holds a lock')")
    with small.engine.connect() as status:
        [held] = read_status(status).held_tables
    assert (held["source"], held["table"], held["held"]) == ("iterable", "email_opened", "columns")
    assert held["reason"] == "process 7 holds a lock"
