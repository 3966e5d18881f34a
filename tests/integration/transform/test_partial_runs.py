"""A run of dbt that reads only a part of the events (`--empty`, `--sample`) does not count as a whole run."""

from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from tests.conftest import Loader
from tests.integration.conftest import Dbt
from tests.support.served_tables import law

EVENT = """
    insert into raw.events (source, collection, message_id, payload)
    values ('iterable', %s, %s, '{"event": "any", "userId": "u"}')
"""
COLLECTION = """
    insert into raw.collections (source, collection, event, first_event_id)
    values ('iterable', 'order_placed', 'Order Placed', 'x1')
"""
CURSORS = "select model, snapshot::text, read_rows from raw.cursors order by model"
TABLES = ("email_delivered", "email_opened", "order_placed", "tracks")


@pytest.fixture
def landed(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit, to a database with landed events with and without a model."""
    with small.connect(autocommit=True) as connection:
        connection.execute(COLLECTION)
        for collection, message_id in (
            ("email_opened", "a"),
            ("email_opened", "b"),
            ("email_opened", "a"),
            ("order_placed", "x1"),
            ("order_placed", "x2"),
        ):
            connection.execute(EVENT, (collection, message_id))
        yield connection


def rows(connection: psycopg.Connection) -> dict[str, int]:
    """Return the number of rows of each table."""
    counted = {}
    for table in TABLES:
        row = connection.execute("select raw.count_rows('iterable', %s)", (table,)).fetchone()
        assert row is not None
        counted[table] = row[0]
    return counted


FULL = {"email_delivered": 0, "email_opened": 2, "order_placed": 2, "tracks": 4}


def test_a3_an_empty_run_moves_no_cursor(dbt: Dbt, landed: psycopg.Connection) -> None:
    """`--empty` reads no event, so the next run has all events to read.

    The scheduler checks only for events after the last whole run. A run without reading is not a whole run.
    """
    assert dbt("run", "--select", "email_delivered", "tracks")[0] == 0
    before = landed.execute(CURSORS).fetchall()
    count = "select count(*) from raw.transforms"
    recorded = landed.execute(count).fetchone()
    code, output = dbt("build", "--empty")
    assert code == 0, output
    after = {row[0]: row for row in landed.execute(CURSORS)}
    assert [after[row[0]] for row in before] == before
    assert after["order_placed"][1:] == (None, 0)
    assert landed.execute(count).fetchone() == recorded
    assert rows(landed) == {"email_delivered": 0, "email_opened": 0, "order_placed": 0, "tracks": 4}

    code, output = dbt("run")
    assert code == 0, output
    assert rows(landed) == FULL
    assert law(landed)["waiting"] == 0


def test_a3_an_empty_full_refresh_empties_no_table(dbt: Dbt, landed: psycopg.Connection) -> None:
    """`--empty --full-refresh` leaves rows and cursors unchanged.

    A missing table is made with its key, and the next run fills it from the first event.
    """
    assert dbt("run")[0] == 0
    before = landed.execute(CURSORS).fetchall()
    code, output = dbt("run", "--empty", "--full-refresh")
    assert code == 0, output
    assert rows(landed) == FULL
    assert landed.execute(CURSORS).fetchall() == before

    landed.execute("drop table iterable.email_opened, iterable.order_placed")
    code, output = dbt("run", "--empty", "--full-refresh")
    assert code == 0, output
    keys = "select conrelid::regclass::text from pg_constraint where contype = 'p' and conrelid = any(%s::regclass[])"
    made = ["iterable.email_opened", "iterable.order_placed"]
    assert sorted(row[0] for row in landed.execute(keys, (made,))) == made
    assert dbt("run")[0] == 0
    assert rows(landed) == FULL
    assert law(landed)["waiting"] == 0


def test_a3_a_sample_run_is_refused(dbt: Dbt, landed: psycopg.Connection) -> None:
    """`--sample` would read a part of the events and move the cursors past the others."""
    before = landed.execute(CURSORS).fetchall()
    code, output = dbt("run", "--sample", "3 days", "--select", "email_opened")
    assert code != 0
    assert "--sample" in output
    assert "--empty" in output
    assert landed.execute(CURSORS).fetchall() == before
    assert rows(landed)["email_opened"] == 0


def test_a3_the_tests_compare_with_raw(dbt: Dbt, loader: Loader, landed: psycopg.Connection) -> None:
    """Cursors after events that are in no table fail the data tests and `loader status`."""
    assert dbt("run")[0] == 0
    code, output = dbt("test", "--select", "test_name:matches_raw", "test_name:found_tables")
    assert code == 0, output
    for message_id in ("c", "d"):
        landed.execute(EVENT, ("email_opened", message_id))
        landed.execute(EVENT, ("order_placed", "x" + message_id))
    landed.execute("update raw.cursors set snapshot = pg_current_snapshot() where snapshot is not null")
    code, output = dbt("test", "--select", "test_name:matches_raw", "test_name:found_tables")
    assert code == 1
    assert "Failure in test matches_raw_email_opened" in output
    assert "Failure in test found_tables_found_collections" in output
    assert "Failure in test matches_raw_email_delivered" not in output
    assert loader("status").returncode == 1
