"""Every committed event is transformed exactly once, whatever else is open and in whatever order it commits."""

import json
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from loader.database import Database, open_database
from loader.settings import Settings
from loader.transform import transform
from tests.conftest import create_database, drop_database, open_settings

# Enough to have a collection, another one that shares ids with it, and what only tracks sees; a run of all 28 models
# would cost the machine its examples.
MODELS = ("email_opened", "push_opened", "tracks")

INSERT = "insert into raw.events (source, collection, message_id, payload) values ('iterable', %s, %s, %s)"


def insert(connection: psycopg.Connection, collection: str, message_id: str, number: int) -> None:
    """Land one event, told from others of its id by its campaign."""
    payload = {"type": "track", "event": collection, "userId": "u", "properties": {"campaignId": number}}
    connection.execute(INSERT, (collection, message_id, json.dumps(payload)))


def run(database: Database, settings_: Settings, *, full_refresh: bool = False) -> None:
    """Run the models, and insist that none failed."""
    filled = transform(database, settings_, select=MODELS, full_refresh=full_refresh)
    assert [table.error for table in filled if table.error] == []


def served(connection: psycopg.Connection) -> dict[str, dict[str, object]]:
    """Return what the tables say: id to campaign for the collections, id to event for tracks."""
    tables = {}
    for table, value in (("email_opened", "campaign_id"), ("push_opened", "campaign_id"), ("tracks", "event")):
        tables[table] = dict(connection.execute(f"select id, {value} from iterable.{table}").fetchall())
    return tables


def expected(connection: psycopg.Connection) -> dict[str, dict[str, object]]:
    """Return what the tables must say, from the raw events alone: of each id, the first one landed."""
    tables: dict[str, dict[str, object]] = {"email_opened": {}, "push_opened": {}, "tracks": {}}
    rows = connection.execute(
        "select collection, message_id, (payload -> 'properties' ->> 'campaignId')::bigint from raw.events order by seq"
    )
    for collection, message_id, number in rows:
        if collection in tables:
            tables[collection].setdefault(message_id, number)
        tables["tracks"].setdefault(message_id, collection)
    return tables


@pytest.fixture
def writers(served_settings: Settings) -> Iterator[list[psycopg.Connection]]:
    """Three connections, each with a transaction of its own."""
    connections = [psycopg.connect(served_settings.database_url) for _ in range(3)]
    yield connections
    for connection in connections:
        connection.close()


def test_a_transaction_that_commits_after_a_run_is_not_lost(
    served: Database, served_settings: Settings, writers: list[psycopg.Connection]
) -> None:
    """An older transaction that commits after a run that saw younger ones is in the next run, once."""
    older, younger, reader = writers
    insert(older, "email_opened", "a", 1)
    insert(younger, "email_opened", "b", 2)
    younger.commit()
    run(served, served_settings)
    assert reader.execute("select id from iterable.email_opened").fetchall() == [("b",)]
    reader.commit()
    older.commit()
    run(served, served_settings)
    run(served, served_settings)
    assert reader.execute("select id from iterable.email_opened order by id").fetchall() == [("a",), ("b",)]
    counted = reader.execute("select model, read_rows, table_rows from raw.cursors where read_rows > 0 order by model")
    assert counted.fetchall() == [("email_opened", 2, 2), ("tracks", 2, 2)]


def test_the_first_landed_wins_even_when_it_commits_last(
    served: Database, served_settings: Settings, writers: list[psycopg.Connection]
) -> None:
    """An event that landed first takes its id back from one that an earlier run had already served."""
    first, second, reader = writers
    insert(first, "email_opened", "a", 1)
    insert(second, "email_opened", "a", 2)
    second.commit()
    run(served, served_settings)
    assert reader.execute("select campaign_id from iterable.email_opened").fetchall() == [(2,)]
    reader.commit()
    first.commit()
    run(served, served_settings)
    assert reader.execute("select campaign_id from iterable.email_opened").fetchall() == [(1,)]
    law = reader.execute("select duplicates, missing_in_collections, missing_in_tracks from raw.conservation")
    assert law.fetchone() == (1, 0, 0)


def test_a_later_event_never_takes_an_id(
    served: Database, served_settings: Settings, writers: list[psycopg.Connection]
) -> None:
    """A late transaction's event that landed after the one served changes nothing."""
    late, first, reader = writers
    late.execute("select pg_current_xact_id()")
    insert(first, "email_opened", "a", 1)
    first.commit()
    insert(late, "email_opened", "a", 2)
    run(served, served_settings)
    late.commit()
    run(served, served_settings)
    assert reader.execute("select campaign_id from iterable.email_opened").fetchall() == [(1,)]


def test_a_rolled_back_transaction_leaves_nothing(
    served: Database, served_settings: Settings, writers: list[psycopg.Connection]
) -> None:
    """What never committed is in no table, before and after a rebuild."""
    writer, other, reader = writers
    insert(writer, "email_opened", "a", 1)
    insert(other, "email_opened", "b", 2)
    other.commit()
    run(served, served_settings)
    writer.rollback()
    run(served, served_settings)
    run(served, served_settings, full_refresh=True)
    assert reader.execute("select id from iterable.email_opened").fetchall() == [("b",)]


class Cut(RuleBasedStateMachine):
    """Transactions that begin, insert, commit and roll back in any order, with runs in between."""

    def __init__(self, server: str, home_settings: Settings) -> None:
        super().__init__()
        self.server = server
        self.settings = home_settings
        self.name = home_settings.database_url.rsplit("/", 1)[1]
        self.reader = psycopg.connect(home_settings.database_url, autocommit=True)
        self.open: list[psycopg.Connection] = []
        self.number = 0
        self.ran = False

    @precondition(lambda self: len(self.open) < 3)
    @rule(early=st.booleans())
    def begin(self, *, early: bool) -> None:
        """Begin a transaction, which may have its id before its first event."""
        connection = psycopg.connect(self.settings.database_url)
        if early:
            connection.execute("select pg_current_xact_id()")
        self.open.append(connection)

    @precondition(lambda self: self.open)
    @rule(
        which=st.integers(0, 2),
        message_ids=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3),
        collection=st.sampled_from(["email_opened", "push_opened", "order_placed"]),
        savepoint=st.booleans(),
    )
    def insert(self, which: int, message_ids: list[str], collection: str, *, savepoint: bool) -> None:
        """Land events in one of the open transactions."""
        connection = self.open[which % len(self.open)]
        for message_id in message_ids:
            self.number += 1
            if savepoint:
                with connection.transaction():
                    insert(connection, collection, message_id, self.number)
            else:
                insert(connection, collection, message_id, self.number)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2), keep=st.sampled_from([True, True, True, False]))
    def end(self, which: int, *, keep: bool) -> None:
        """Commit or roll back one of them."""
        connection = self.open.pop(which % len(self.open))
        if keep:
            connection.commit()
        connection.close()

    @rule(full_refresh=st.sampled_from([False, False, False, True]))
    def run(self, *, full_refresh: bool) -> None:
        """Run dbt."""
        with open_database(self.settings) as database:
            run(database, self.settings, full_refresh=full_refresh)
        self.ran = True

    @invariant()
    def tables_say_what_raw_says(self) -> None:
        """After a run the tables are what the committed events alone say they must be."""
        if self.ran:
            self.ran = False
            assert served(self.reader) == expected(self.reader)
            law = self.reader.execute(
                "select waiting, missing_in_collections, missing_in_tracks,"
                " accepted - in_collections - in_tracks_only - quarantined - duplicates - other_calls"
                " from raw.conservation"
            )
            assert law.fetchone() == (0, 0, 0, 0)

    def teardown(self) -> None:
        """Commit what is open, and compare the increments with a rebuild."""
        for connection in self.open:
            connection.commit()
            connection.close()
        with open_database(self.settings) as database:
            run(database, self.settings)
            incremental = served(self.reader)
            assert incremental == expected(self.reader)
            run(database, self.settings, full_refresh=True)
            assert served(self.reader) == incremental
        self.reader.close()
        drop_database(self.server, self.name)


def machine(server: str, home_settings: Settings, template: str) -> type[Cut]:
    """Return the machine with a database of its own for each of its lives."""
    lives = iter(range(10_000))

    def build() -> Cut:
        name = f"cut_{next(lives)}"
        return Cut(server, open_settings(create_database(server, name, template), home_settings.home))

    return build  # type: ignore[return-value]


def test_any_chopping_into_runs_gives_what_a_rebuild_gives(
    server: str, served_settings: Settings, served_template: str
) -> None:
    """A few random histories: every run agrees with the raw events, and the end with a rebuild."""
    run_state_machine_as_test(
        machine(server, served_settings, served_template),
        settings=settings(
            max_examples=3, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.soak
def test_any_chopping_at_length(server: str, served_settings: Settings, served_template: str) -> None:
    """The same with many long histories."""
    run_state_machine_as_test(
        machine(server, served_settings, served_template),
        settings=settings(
            max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
