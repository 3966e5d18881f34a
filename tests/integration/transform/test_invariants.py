"""The invariants of docs/design/invariants.md, each in its hardest case, with a real PostgreSQL and dbt."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import Database, open_database
from loader.settings import Settings
from tests.conftest import loader_here, restored
from tests.support.dbt_runs import parsed, project_in_use, run, start_dbt, started, succeed
from tests.support.factories import insert_event
from tests.support.served_tables import assert_union, contents, everything, law
from tests.support.waiting import wait_until

MODELS = ("email_opened", "tracks")
REBUILD = ("run", "--full-refresh", "--select", "email_opened")


@contextmanager
def writers(database: Database, number: int) -> Iterator[list[psycopg.Connection]]:
    """Return open connections, each with its own transaction."""
    connections = [database.connect() for _ in range(number)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


@pytest.fixture
def reader(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit."""
    with small.connect(autocommit=True) as connection:
        yield connection


def marks(connection: psycopg.Connection, table: str) -> dict[str, str]:
    """Return the event of each id."""
    return dict(connection.execute(f"select id, user_id from iterable.{table}").fetchall())


# Programs with these settings stop at a `Gate` until the gate is open. Other programs pass.
STOP_AT_GATE = {"PGOPTIONS": "-c test.gate=on"}


class Gate:
    """Stops transactions of some programs at their inserts into a table, until the gate is open."""

    def __init__(self, connection: psycopg.Connection, table: str) -> None:
        self.connection = connection
        connection.execute(
            f"""
            create function raw.stop_at_gate() returns trigger language plpgsql as $$
            begin
                if current_setting('test.gate', true) = 'on' then
                    perform pg_advisory_xact_lock_shared(4711);
                end if;
                return new;
            end $$;
            create trigger gate before insert on {table} for each row execute function raw.stop_at_gate();
            select pg_advisory_lock(4711);
            """
        )

    def stopped(self) -> int:
        """Return the number of transactions that wait at the gate."""
        row = self.connection.execute(
            "select count(*) from pg_locks join pg_database on pg_database.oid = pg_locks.database"
            " where locktype = 'advisory' and objid = 4711 and not granted and datname = current_database()"
        ).fetchone()
        assert row is not None
        return row[0]

    def open(self) -> None:
        """Let all transactions through."""
        self.connection.execute("select pg_advisory_unlock(4711)")


def start_transform(settings: Settings, **variables: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Start `loader transform`."""
    variables |= {"DATABASE_URL": settings.database_url, "LOADER_HOME": str(parsed(settings).parent)}
    return started([sys.executable, "-m", "loader", "transform"], variables, project_in_use().parent)


def land_many(connection: psycopg.Connection, number: int, prefix: str = "e") -> None:
    """Land many events of several collections, some with repeated ids."""
    connection.execute(
        """
        insert into raw.events (source, collection, message_id, payload)
        select
            'iterable',
            (array['email_delivered', 'email_opened', 'order_placed'])[1 + i %% 3],
            %(prefix)s || i - case when i %% 50 = 0 then 6 else 0 end,
            jsonb_build_object('userId', 'u' || i, 'properties', jsonb_build_object('campaignId', i))
        from generate_series(1, %(number)s) as i
        """,
        {"prefix": prefix, "number": number},
    )


def assert_equals_rebuild(database: Database, settings: Settings) -> None:
    """Check that a rebuild changes nothing but `uuid_ts`."""
    with database.connect(autocommit=True) as connection:
        increments = everything(connection)
        assert_union(connection)
        law(connection)
        run(database, settings, full_refresh=True)
        assert everything(connection) == increments
        law(connection)


# Exactly once, whatever transactions are open and in any order of commits.


def began_first(first: psycopg.Connection, second: psycopg.Connection) -> None:
    """The transaction that lands first also has the lower id."""
    insert_event(first, "email_opened", "a", mark="first", campaign=5)
    insert_event(second, "email_opened", "a", mark="second", campaign="y")


def began_last(first: psycopg.Connection, second: psycopg.Connection) -> None:
    """The transaction that lands first has the higher id, above all ids that a snapshot before its end contains."""
    second.execute("select pg_current_xact_id()")
    began_first(first, second)


@pytest.mark.parametrize("history", [began_first, began_last])
def test_the_first_landed_event_counts_even_if_it_commits_last(
    small: Database,
    small_settings: Settings,
    reader: psycopg.Connection,
    history: Callable[[psycopg.Connection, psycopg.Connection], None],
) -> None:
    """The first landed event takes its id back from a later event that was served before. Mismatches follow."""
    with writers(small, 2) as (first, second):
        history(first, second)
        second.commit()
        run(small, small_settings, *MODELS)
        assert marks(reader, "email_opened") == {"a": "second"}
        assert reader.execute("select value from raw.mismatches").fetchall() == [("y",)]
        first.commit()
        run(small, small_settings, *MODELS)
    increments = everything(reader)
    assert marks(reader, "email_opened") == marks(reader, "tracks") == {"a": "first"}
    assert increments["mismatches"] == []
    assert law(reader)["duplicates"] == 1
    run(small, small_settings, *MODELS, full_refresh=True)
    assert everything(reader) == increments


def test_a_later_event_never_takes_an_id(small: Database, small_settings: Settings, reader: psycopg.Connection) -> None:
    """A later duplicate changes nothing, although its transaction began first and its values do not fit."""
    with writers(small, 2) as (late, early):
        late.execute("select pg_current_xact_id()")
        insert_event(late, "email_opened", "z", mark="late")
        insert_event(early, "email_opened", "a", mark="early", campaign=None)
        insert_event(late, "email_opened", "a", mark="late", campaign="x")
        early.commit()
        run(small, small_settings, *MODELS)
        late.commit()
        run(small, small_settings, *MODELS)
    increments = everything(reader)
    assert marks(reader, "email_opened") == {"a": "early", "z": "late"}
    assert increments["mismatches"] == []
    run(small, small_settings, *MODELS, full_refresh=True)
    assert everything(reader) == increments


def test_the_first_of_three_events_with_one_id_counts_in_the_end(
    small: Database, small_settings: Settings, reader: psycopg.Connection
) -> None:
    """Three events with one id become visible last to first.

    The first counts in the end, in tracks across collections.
    """
    with writers(small, 3) as (first, second, third):
        insert_event(first, "email_delivered", "a", mark="first")
        insert_event(second, "order_placed", "a", mark="second")
        insert_event(third, "email_opened", "a", mark="third")
        for writer, mark in ((third, "third"), (second, "second"), (first, "first")):
            writer.commit()
            run(small, small_settings, "email_delivered", *MODELS)
            assert marks(reader, "tracks") == {"a": mark}
    assert marks(reader, "email_opened") == {"a": "third"}
    assert marks(reader, "email_delivered") == {"a": "first"}
    numbers = law(reader)
    assert (numbers["in_collections"], numbers["in_tracks_only"], numbers["duplicates"]) == (2, 0, 1)


def test_a_source_is_filled_whole_or_not_at_all(
    small: Database, small_settings: Settings, reader: psycopg.Connection
) -> None:
    """If the rows of one source are refused, its table and cursor stay as they are, and the others are filled."""
    reader.execute("insert into raw.sources (name, schema_name) values ('App', 'app'), ('Web', 'web')")
    run(small, small_settings, *MODELS)
    reader.execute("alter table app.email_opened add constraint refuse check (user_id <> 'bad')")
    with writers(small, 1) as (writer,):
        insert_event(writer, "email_opened", "a", source="iterable", mark="iterable")
        insert_event(writer, "email_opened", "b", source="app", mark="app")
        insert_event(writer, "email_opened", "c", source="app", mark="bad")
        insert_event(writer, "email_opened", "d", source="web", mark="web")
        writer.commit()
    query = (
        "select snapshot::text, read_rows, table_rows from raw.cursors where model = 'email_opened' and source = 'app'"
    )
    before = reader.execute(query).fetchall()
    filled = run(small, small_settings, *MODELS)
    assert [(table.source, table.table) for table in filled if 'constraint "refuse"' in table.held] == [
        ("app", "email_opened")
    ]
    assert marks(reader, "email_opened") == {"a": "iterable"}
    assert reader.execute("select id from app.email_opened").fetchall() == []
    assert reader.execute(query).fetchall() == before
    assert law(reader, "app")["waiting"] == 2

    reader.execute("alter table app.email_opened drop constraint refuse")
    reader.execute("update raw.held_tables set next_try_at = clock_timestamp()")
    run(small, small_settings, *MODELS)
    for source, mark in (("iterable", "iterable"), ("app", "app"), ("web", "web")):
        rows = reader.execute(f"select id, user_id from {source}.email_opened").fetchall()
        assert rows == reader.execute(f"select id, user_id from {source}.tracks").fetchall()
        assert ("bad" if source == "app" else mark) in {row[1] for row in rows}
        assert law(reader, source)["waiting"] == 0


# Parallel runs, and readers beside them.


def test_concurrent_first_runs_serve_each_event_once(unfilled: Database, unfilled_settings: Settings) -> None:
    """The runs are of dbt and of the loader, each with its own snapshot.

    All succeed, and every event is served once.
    """
    with unfilled.connect(autocommit=True) as connection, ExitStack() as stack:
        connection.execute("insert into raw.sources (name, schema_name) values ('App', 'app')")
        gate = Gate(connection, "raw.cursors")
        processes = []

        def begun() -> bool:
            return connection.execute("select count(*) from raw.transforms").fetchone() == (len(processes),)

        runs = (start_dbt(unfilled_settings, "run", **STOP_AT_GATE), start_transform(unfilled_settings, **STOP_AT_GATE))
        for number, start in enumerate(runs):
            land_many(connection, 100, f"{number}-")
            insert_event(connection, "email_opened", str(number), source="app")
            processes.append(stack.enter_context(start))
            wait_until(begun, "the run to have its snapshot")
        land_many(connection, 100, "after-")
        gate.open()
        for process in processes:
            succeed(process)
        statuses = connection.execute("select status, count(distinct snapshot::text) from raw.transforms group by 1")
        assert statuses.fetchall() == [("success", 2)]
        assert law(connection)["waiting"] == 100
        run(unfilled, unfilled_settings)
        assert law(connection)["accepted"] == 300
        assert law(connection, "app")["in_collections"] == 2
    assert_equals_rebuild(unfilled, unfilled_settings)


def test_a_rebuild_with_an_older_snapshot_keeps_rows_of_later_runs(
    small: Database, small_settings: Settings, reader: psycopg.Connection
) -> None:
    """A rebuild whose snapshot is older than the cursor keeps the rows that a later run has added."""
    insert_event(reader, "email_opened", "a")
    gate = Gate(reader, "raw.cursors")
    with start_dbt(small_settings, *REBUILD, **STOP_AT_GATE) as rebuild:
        wait_until(lambda: gate.stopped() == 1, "the rebuild to have its snapshot")
        insert_event(reader, "email_opened", "b")
        run(small, small_settings, *MODELS)
        assert set(marks(reader, "email_opened")) == {"a", "b"}
        gate.open()
        succeed(rebuild)
    rebuilds = reader.execute(
        "select table_rows from raw.syncs where model = 'email_opened' and full_refresh and read_rows > 0"
    )
    assert rebuilds.fetchall() == [(2,)]
    assert set(marks(reader, "email_opened")) == {"a", "b"}
    assert law(reader)["waiting"] == 0


def test_readers_go_on_reading_while_a_table_is_rebuilt(
    small: Database, small_settings: Settings, reader: psycopg.Connection
) -> None:
    """An open cursor keeps its rows, and new queries see all rows, while a rebuild waits before its commit."""
    land_many(reader, 300)
    run(small, small_settings, *MODELS)
    reader.execute("set lock_timeout = '5s'")
    before = contents(reader, "iterable.email_opened", without=())
    gate = Gate(reader, "raw.syncs")
    with (
        small.connect() as analyst,
        analyst.cursor("open") as cursor,
        start_dbt(small_settings, *REBUILD, **STOP_AT_GATE) as rebuild,
    ):
        cursor.execute("select * from iterable.email_opened order by id")
        read = cursor.fetchmany(10)
        wait_until(lambda: gate.stopped() == 1, "the table to be deleted and filled again, not committed")
        assert contents(reader, "iterable.email_opened", without=()) == before
        read += cursor.fetchmany(10)
        gate.open()
        succeed(rebuild)
        read += cursor.fetchall()
    assert read == before
    after = contents(reader, "iterable.email_opened", without=())
    assert [(row[:2], row[3:]) for row in after] == [(row[:2], row[3:]) for row in before]
    assert {row[2] for row in after}.isdisjoint({row[2] for row in before})


# A dump that is restored into another cluster.


@pytest.mark.parametrize("comes_back", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_a_restored_dump_with_a_waiting_latecomer_gives_the_same_tables(
    small: Database,
    small_settings: Settings,
    reader: psycopg.Connection,
    server: str,
    other_server: str,
    *,
    comes_back: bool,
) -> None:
    """Models are at different points and a latecomer waits.

    The restored dump gives the same tables, here and elsewhere, also after a second restore into the first server.
    """
    with writers(small, 1) as (late,):
        insert_event(late, "email_opened", "late", mark="first")
        land_many(reader, 60, "a")
        insert_event(reader, "email_opened", "late", mark="second")
        run(small, small_settings)
        land_many(reader, 60, "b")
        run(small, small_settings, "email_opened", "email_delivered")
        land_many(reader, 60, "c")
        run(small, small_settings, "tracks")
        land_many(reader, 60, "d")
        late.commit()
    accepted = law(reader)["accepted"]

    home = small_settings.home.parent
    with restored(small.url, other_server, home) as settings:
        run(small, small_settings)
        here = everything(reader)
        assert marks(reader, "email_opened")["late"] == "first"
        with open_database(settings) as database, database.connect(autocommit=True) as connection:
            assert law(connection)["accepted"] == accepted
            run(database, settings)
            assert everything(connection) == here
            if not comes_back:
                assert_equals_rebuild(database, settings)
                return
            land_many(connection, 60, "e")
            run(database, settings, "email_delivered", "tracks")
            land_many(connection, 60, "f")
            with restored(database.url, server, home) as back:
                run(database, settings)
                assert law(connection)["waiting"] == 0
                with open_database(back) as returned, returned.connect(autocommit=True) as connection_back:
                    run(returned, back)
                    assert everything(connection_back) == everything(connection)
                assert_equals_rebuild(returned, back)


def test_events_of_a_transaction_older_than_the_adoption_are_new(
    small: Database, small_settings: Settings, reader: psycopg.Connection
) -> None:
    """An event is new even if its transaction got its id before the adoption and landed the event after it."""
    insert_event(reader, "email_opened", "a")
    run(small, small_settings, *MODELS)
    with writers(small, 1) as (early,):
        early.execute("select pg_current_xact_id()")
        reader.execute("update raw.cluster set system_identifier = system_identifier + 1")
        assert reader.execute("select raw.adopt_cluster()").fetchall() == [(True,)]
        assert reader.execute("select raw.adopt_cluster()").fetchall() == [(False,)]
        insert_event(early, "email_opened", "b")
        early.commit()
    run(small, small_settings, *MODELS)
    assert set(marks(reader, "email_opened")) == set(marks(reader, "tracks")) == {"a", "b"}
    assert law(reader)["duplicates"] == 0


# Every loss is reported.


def test_every_message_is_accounted_for(
    small: Database, small_settings: Settings, reader: psycopg.Connection, tmp_path: Path
) -> None:
    """Rows, tracks-only events, duplicates, and other, excluded, refused and waiting calls are counted exactly."""
    lines = [
        {"event": "Email Opened", "messageId": "a"},
        {"event": "Email Opened", "messageId": "b"},
        {"event": "email_opened", "messageId": "a"},
        {"event": "Order Placed", "messageId": "c"},
        {"event": "Order Placed", "messageId": "c"},
        {"event": "\u65e5\u672c", "messageId": "d"},
        {"type": "identify", "messageId": "e"},
        {"type": "page", "messageId": "f"},
        {"event": "Email Opened", "messageId": "g", "userId": ""},
        {"event": "Email Opened", "messageId": "h", "integrations": {"Warehouses": {"all": False}}},
    ]
    path = tmp_path / "events.ndjson"
    calls = [json.dumps({"type": "track", "userId": "u"} | line) for line in lines]
    path.write_text("\n".join([*calls, "{broken"]) + "\n", encoding="utf-8")
    assert loader_here(small_settings)("load", str(path)).returncode == 3
    parts = "accepted in_collections in_tracks_only quarantined duplicates other_calls excluded waiting".split()

    def numbers() -> tuple[int, ...]:
        told = law(reader)
        return tuple(told[part] for part in parts)

    models = (*MODELS, "email_delivered", "found_collections")
    assert numbers() == (11, 0, 0, 2, 0, 2, 1, 6)
    run(small, small_settings, *models)
    assert numbers() == (11, 3, 1, 2, 2, 2, 1, 0)
    # An id that another collection has is a row there too, and adds no row to tracks.
    insert_event(reader, "email_delivered", "a")
    insert_event(reader, "order_placed", "b")
    assert numbers() == (13, 3, 1, 2, 2, 2, 1, 2)
    run(small, small_settings, "email_delivered")
    assert numbers() == (13, 4, 1, 2, 2, 2, 1, 1)
    run(small, small_settings, *models)
    assert numbers() == (13, 5, 1, 2, 2, 2, 1, 0)
    run(small, small_settings, *models, full_refresh=True)
    assert numbers() == (13, 5, 1, 2, 2, 2, 1, 0)
    # Events of an unregistered source count too.
    insert_event(reader, "email_opened", "z", source="unknown")
    assert law(reader, "unknown")["waiting"] == 1


def test_the_conservation_law_detects_missing_and_extra_rows(
    small: Database, small_settings: Settings, reader: psycopg.Connection
) -> None:
    """Removed or added rows, in a collection or in tracks, are missing there and nowhere else."""
    insert_event(reader, "email_opened", "a")
    insert_event(reader, "order_placed", "b")
    run(small, small_settings, *MODELS)
    for damage, missing in (
        ("delete from iterable.email_opened", (1, 0)),
        ("drop table iterable.email_opened", (1, 0)),
        ("insert into iterable.email_opened (id) values ('x')", (-1, 0)),
        ("delete from iterable.tracks where id = 'a'", (0, 1)),
        ("delete from iterable.tracks where id = 'b'", (0, 1)),
        ("insert into iterable.tracks (id) values ('x')", (0, -1)),
    ):
        with small.connect() as connection:
            connection.execute(damage)
            told = connection.execute("select missing_in_collections, missing_in_tracks from raw.conservation")
            assert told.fetchall() == [missing], damage
            connection.rollback()
    law(reader)
