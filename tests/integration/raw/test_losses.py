"""Rows whose events are gone from raw.events are kept, unless a person permits the loss."""

from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.raw.rescan import rescan
from loader.settings import Settings
from loader.transform.dbt import transform
from loader.transform.scheduler import Schedule
from tests.conftest import Loader
from tests.integration.conftest import Dbt, MakeSmall
from tests.integration.transform.test_partial_runs import COLLECTION, rows
from tests.support.dbt_runs import run

EVENTS = """
    insert into raw.events (source, collection, message_id, payload)
    select
        %(source)s,
        %(collection)s,
        n::text,
        jsonb_build_object('event', 'any', 'userId', 'u', 'properties', jsonb_build_object('size', n))
    from generate_series(%(first)s::int, %(last)s::int) as n
"""
LOSE = "delete from raw.events where collection = 'email_opened' and message_id::int <= 200"


def land(connection: psycopg.Connection, collection: str, first: int, last: int, source: str = "iterable") -> None:
    """Land events of two collections, whose ids are numbers."""
    connection.execute(EVENTS, {"source": source, "collection": collection, "first": first, "last": last})


def make_filled(make_small: MakeSmall, name: str, *events: tuple[str, int, int]) -> str:
    """Make a database with events in its tables, and return its name.

    Args:
        make_small: The fixture.
        name: The name of the database.
        events: Collections, each with the first and the last id of its events.
    """

    def fill(database: Database, settings: Settings) -> None:
        with database.connect(autocommit=True) as connection:
            connection.execute(COLLECTION)
            for collection, first, last in events:
                land(connection, collection, first, last)
        run(database, settings)

    return make_small(name, fill)


@pytest.fixture
def small_start(make_small: MakeSmall) -> str:
    """Return the name of a database with 260 events in its tables."""
    return make_filled(make_small, "losses_template", ("email_opened", 1, 250), ("order_placed", 1001, 1010))


@pytest.fixture
def damaged(small: Database) -> Iterator[psycopg.Connection]:
    """Return a database in which 200 of 250 events of a filled table are gone, and another 50 wait."""
    with small.connect(autocommit=True) as connection:
        connection.execute(LOSE)
        land(connection, "email_opened", 251, 300)
        land(connection, "order_placed", 1011, 1020)
        yield connection


def held(connection: psycopg.Connection) -> dict[str, str]:
    """Return the tables that are not rebuilt, with their reasons."""
    found = connection.execute("select source || '.' || model, reason from raw.held_tables where held = 'rebuild'")
    return dict(found.fetchall())


def test_a5_a_full_refresh_refuses_tables_that_would_lose_rows(damaged: psycopg.Connection, loader: Loader) -> None:
    """The error names such a table with both numbers and the way out. The other tables are rebuilt."""
    done = loader("transform", "--full-refresh")
    assert done.returncode == 1
    assert "Error: iterable.email_opened was left as it was: raw.events holds 50 of the 250 events" in done.stderr
    assert "Error: iterable.tracks was left as it was: raw.events holds 60 of the 260 events" in done.stderr
    assert "loader transform --full-refresh --allow-loss --select iterable.email_opened" in done.stderr
    assert done.stderr.count("Error:") == 2
    assert rows(damaged) == {"email_delivered": 0, "email_opened": 250, "order_placed": 20, "tracks": 260}
    refreshed = damaged.execute(
        "select model from raw.syncs where full_refresh"
        " and started_at = (select max(started_at) from raw.syncs) order by model"
    )
    assert refreshed.fetchall() == [("email_delivered",), ("order_placed",)]


def test_a5_the_loss_can_be_allowed(damaged: psycopg.Connection, loader: Loader) -> None:
    """`--allow-loss` rebuilds from the remaining events, and needs a full refresh."""
    assert loader("transform", "--allow-loss").returncode == 2
    assert loader("transform", "--full-refresh").returncode == 1
    assert set(held(damaged)) == {"iterable.email_opened", "iterable.tracks"}
    done = loader("transform", "--full-refresh", "--allow-loss")
    assert done.returncode == 0, done.stderr
    assert "Note: iterable.email_opened was rebuilt, and rows were lost, as the command allowed." in done.stderr
    assert rows(damaged) == {"email_delivered": 0, "email_opened": 100, "order_placed": 20, "tracks": 120}
    assert held(damaged) == {}
    assert loader("status").returncode == 0


def test_a5_dbt_without_the_loader_also_refuses_and_allows_losses(damaged: psycopg.Connection, dbt: Dbt) -> None:
    """Dbt names each table with both numbers, and a variable permits the loss."""
    code, output = dbt("run", "--full-refresh", "--select", "email_opened", "email_delivered")
    assert code == 1
    assert "raw.events holds 50 of the 250 events" in " ".join(output.split())
    assert rows(damaged)["email_opened"] == 250
    code, output = dbt("run", "--full-refresh", "--select", "email_opened", "--vars", "allow_loss: true")
    assert code == 0, output
    assert rows(damaged)["email_opened"] == 100


def test_a5_a_table_without_a_model_is_refused_alone(
    damaged: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """The tables that share its model, and those of another source, are rebuilt."""
    damaged.execute("insert into raw.sources (name, schema_name) values ('App', 'app')")
    damaged.execute(
        COLLECTION.replace("'iterable', 'order_placed', 'Order Placed'", "'app', 'order_placed', 'Order Placed'")
    )
    damaged.execute(COLLECTION.replace("'order_placed', 'Order Placed'", "'order_shipped', 'Order Shipped'"))
    land(damaged, "order_placed", 1, 5, source="app")
    land(damaged, "order_shipped", 2001, 2003)
    run(small, small_settings)
    damaged.execute("delete from raw.events where collection = 'order_placed' and source = 'iterable'")
    done = transform(small, small_settings, select=["found_collections"], full_refresh=True)
    assert {(t.source, t.table): t.error[:51] for t in done if t.error} == {
        ("iterable", "order_placed"): "raw.events holds 0 of the 20 events that the table "
    }
    assert {(t.source, t.table) for t in done if not t.error} == {
        ("iterable", "order_shipped"),
        ("app", "order_placed"),
    }


def test_a5_a_rescan_orders_no_rebuild_that_would_lose_rows(
    damaged: psycopg.Connection, loader: Loader, small: Database, small_settings: Settings
) -> None:
    """Such a table keeps its cursor, grows by increments, and `status` names it. The other tables are rebuilt."""
    done = loader("rescan")
    assert done.returncode == 0
    assert "Not rebuilt, because rows would be lost: iterable.email_opened." in done.stderr
    run(small, small_settings)
    assert rows(damaged) == {"email_delivered": 0, "email_opened": 300, "order_placed": 20, "tracks": 320}
    assert damaged.execute("select count(size) from iterable.order_placed").fetchone() == (20,)
    assert damaged.execute("select count(size) from iterable.email_opened").fetchone() == (50,)
    status = loader("status")
    assert status.returncode == 1
    assert "raw.events holds 50 of the 250 events that the table has read." in " ".join(status.stdout.split())


def test_a5_a_scheduler_does_not_try_a_refused_table_again(
    damaged: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """After the run that follows a rescan, the scheduler has no work."""
    rescan(damaged)
    schedule = Schedule(small_settings, 1)
    assert ("order_placed", "iterable") in schedule._find_unmade(damaged)
    assert ("email_opened", "iterable") not in schedule._find_unmade(damaged)
    run(small, small_settings)
    assert not schedule._has_news(damaged)


def test_a5_events_that_are_lost_between_rescan_and_run_cost_no_rows(small: Database, small_settings: Settings) -> None:
    """The run checks again. The table grows by increments, and the order to rebuild is gone."""
    with small.connect(autocommit=True) as connection:
        rescan(connection)
        ordered = "select model from raw.cursors where rebuild_ordered order by model"
        assert connection.execute(ordered).fetchall() == [("email_opened",), ("order_placed",)]
        connection.execute(LOSE)
        land(connection, "email_opened", 251, 260)
        run(small, small_settings)
        assert rows(connection)["email_opened"] == 260
        assert connection.execute(ordered).fetchall() == []
        assert set(held(connection)) == {"iterable.email_opened"}


def test_a5_a_cursor_set_to_null_by_hand_costs_no_rows(
    damaged: psycopg.Connection, loader: Loader, small: Database, small_settings: Settings
) -> None:
    """The events that the table has read are unknown then. The run reads all events, and the table keeps its rows."""
    damaged.execute(
        "update raw.cursors set snapshot = null, read_rows = 0, table_rows = 0 where model = 'email_opened'"
    )
    damaged.execute("update raw.cursors set snapshot = null where model = 'tracks'")
    for _ in range(2):
        run(small, small_settings)
        assert rows(damaged) == {"email_delivered": 0, "email_opened": 300, "order_placed": 20, "tracks": 320}
    assert set(held(damaged)) == {"iterable.email_opened", "iterable.tracks"}
    assert loader("status").returncode == 1


def test_a5_a_dropped_table_is_made_from_the_remaining_events(
    damaged: psycopg.Connection, loader: Loader, dbt: Dbt
) -> None:
    """The table has no rows to lose, and a note gives the number of events that raw.events lacks."""
    damaged.execute("drop table iterable.email_opened, iterable.order_placed")
    done = loader("transform")
    assert done.returncode == 0, done.stderr
    note = "iterable.email_opened had been dropped and is made again. raw.events holds 50 of the 250 events"
    assert f"Note: {note}" in done.stderr
    assert done.stderr.count("Note:") == 1
    assert rows(damaged) == {"email_delivered": 0, "email_opened": 100, "order_placed": 20, "tracks": 320}
    damaged.execute("delete from raw.events where collection = 'email_opened'")
    damaged.execute("drop table iterable.email_opened")
    code, output = dbt("run", "--select", "email_opened")
    assert code == 0
    assert "raw.events holds 0 of the 100 events" in output


def test_a5_an_emptied_table_has_nothing_to_lose(damaged: psycopg.Connection, loader: Loader) -> None:
    """A rebuild that can only add rows is not refused."""
    damaged.execute("delete from iterable.email_opened")
    assert loader("transform", "--full-refresh", "--select", "email_opened").returncode == 0
    assert rows(damaged)["email_opened"] == 100


def test_a5_fewer_raw_events_than_were_read_fail_the_tests(
    damaged: psycopg.Connection, loader: Loader, dbt: Dbt
) -> None:
    """`status` exits with 1, and `dbt test` fails, for a table with a model and for a table without a model."""
    damaged.execute("delete from raw.events where message_id = '1001'")
    assert loader("status").returncode == 1
    code, output = dbt("test", "--select", "test_type:data")
    assert code == 1
    assert "Failure in test matches_raw_email_opened" in output
    assert "Failure in test found_tables_found_collections" in output
