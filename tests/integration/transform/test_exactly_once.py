"""Every committed event is transformed exactly once, whatever transactions are open and in any order of commits."""

import json
from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.dbt import transform

MODELS = ("email_opened", "email_delivered", "tracks")

INSERT = "insert into raw.events (source, collection, message_id, payload) values ('iterable', %s, %s, %s)"


def insert(connection: psycopg.Connection, collection: str, message_id: str, number: int) -> None:
    """Land one event, whose campaign distinguishes it from other events with its id."""
    payload = {"type": "track", "event": collection, "userId": "u", "properties": {"campaignId": number}}
    connection.execute(INSERT, (collection, message_id, json.dumps(payload)))


def run(database: Database, settings_: Settings, *, full_refresh: bool = False) -> None:
    """Run the models, and check that none failed."""
    filled = transform(database, settings_, select=MODELS, full_refresh=full_refresh)
    assert [table.error for table in filled if table.error] == []


@pytest.fixture
def writers(small_settings: Settings) -> Iterator[list[psycopg.Connection]]:
    """Return three connections, each with its own transaction."""
    connections = [psycopg.connect(small_settings.database_url) for _ in range(3)]
    yield connections
    for connection in connections:
        connection.close()


def test_a_transaction_that_commits_after_a_run_is_not_lost(
    small: Database, small_settings: Settings, writers: list[psycopg.Connection]
) -> None:
    """A transaction that commits after a run with younger events is in the next run, once."""
    older, younger, reader = writers
    insert(older, "email_opened", "a", 1)
    insert(younger, "email_opened", "b", 2)
    younger.commit()
    run(small, small_settings)
    assert reader.execute("select id from iterable.email_opened").fetchall() == [("b",)]
    reader.commit()
    older.commit()
    run(small, small_settings)
    run(small, small_settings)
    assert reader.execute("select id from iterable.email_opened order by id").fetchall() == [("a",), ("b",)]
    counted = reader.execute("select model, read_rows, table_rows from raw.cursors where read_rows > 0 order by model")
    assert counted.fetchall() == [("email_opened", 2, 2), ("tracks", 2, 2)]


def test_a_rolled_back_transaction_leaves_nothing(
    small: Database, small_settings: Settings, writers: list[psycopg.Connection]
) -> None:
    """Events without a commit are in no table, before and after a rebuild."""
    writer, other, reader = writers
    insert(writer, "email_opened", "a", 1)
    insert(other, "email_opened", "b", 2)
    other.commit()
    run(small, small_settings)
    writer.rollback()
    run(small, small_settings)
    run(small, small_settings, full_refresh=True)
    assert reader.execute("select id from iterable.email_opened").fetchall() == [("b",)]
