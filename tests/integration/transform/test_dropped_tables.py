"""Tables that were dropped, or are missing after a restore of the raw schema alone, come back; each can be selected."""

from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.dbt import transform
from loader.transform.scheduler import Schedule
from tests.conftest import Loader
from tests.integration.raw.test_losses import land
from tests.integration.transform.test_partial_runs import COLLECTION, rows
from tests.support.dbt_runs import run
from tests.support.served_tables import law

FULL = {"email_delivered": 0, "email_opened": 5, "order_placed": 3, "tracks": 8}


@pytest.fixture
def filled(small: Database, small_settings: Settings) -> Iterator[psycopg.Connection]:
    """Return a database with filled tables, with and without a model."""
    with small.connect(autocommit=True) as connection:
        connection.execute(COLLECTION)
        land(connection, "email_opened", 1, 5)
        land(connection, "order_placed", 11, 13)
        run(small, small_settings)
        assert rows(connection) == FULL
        yield connection


def test_a12_the_next_run_makes_dropped_tables_again(
    filled: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """This holds with and without a model, although no event has landed. A scheduler counts such a table as work."""
    schedule = Schedule(small_settings, 1)
    assert not schedule._has_news(filled)
    filled.execute("drop table iterable.order_placed")
    assert schedule._has_news(filled)
    run(small, small_settings)
    assert rows(filled) == FULL
    assert not schedule._has_news(filled)
    filled.execute("drop schema iterable cascade")
    assert schedule._has_news(filled)
    run(small, small_settings)
    assert rows(filled) == FULL
    assert law(filled)["waiting"] == 0


@pytest.mark.parametrize("name", ["iterable.order_placed", "order_placed"])
def test_a12_a_table_without_a_model_can_be_selected(
    filled: psycopg.Connection, small: Database, small_settings: Settings, loader: Loader, name: str
) -> None:
    """The selection is the name that `status` prints, and only that table is rebuilt."""
    filled.execute(COLLECTION.replace("'order_placed', 'Order Placed'", "'order_shipped', 'Order Shipped'"))
    land(filled, "order_shipped", 21, 22)
    run(small, small_settings)
    filled.execute("drop table iterable.order_placed")
    assert loader("transform", "--select", name).returncode == 0
    assert rows(filled) == FULL | {"tracks": 10}
    done = transform(small, small_settings, select=[name], full_refresh=True)
    assert [(table.source, table.table) for table in done] == [("iterable", "order_placed")]
    latest = "select model from raw.syncs where started_at = (select max(started_at) from raw.syncs)"
    assert filled.execute(latest).fetchall() == [("order_placed",)]


def test_a12_a_table_of_one_source_can_be_selected(
    filled: psycopg.Connection, small: Database, small_settings: Settings, loader: Loader
) -> None:
    """The source's name limits a model to the table of that source, beside dbt's own selection."""
    filled.execute("insert into raw.sources (name, schema_name) values ('App', 'app')")
    land(filled, "email_opened", 1, 2, source="app")
    land(filled, "email_delivered", 3, 4, source="app")
    done = transform(small, small_settings, select=["app.email_opened", "email_delivered"])
    assert {(table.source, table.table): table.rows for table in done} == {
        ("iterable", "email_delivered"): 0,
        ("app", "email_delivered"): 2,
        ("app", "email_opened"): 2,
    }
    assert filled.execute("select whole from raw.transforms order by started_at desc limit 1").fetchone() == (False,)
    filled.execute("delete from app.email_opened")
    filled.execute("delete from iterable.email_opened")
    assert loader("transform", "--full-refresh", "--select", "app.email_opened").returncode == 0
    assert filled.execute("select raw.count_rows('app', 'email_opened')").fetchone() == (2,)
    assert rows(filled)["email_opened"] == 0


def test_a12_an_unknown_table_is_no_selection(filled: psycopg.Connection, loader: Loader) -> None:
    """The error says so, and no model runs."""
    before = filled.execute("select count(*) from raw.transforms").fetchone()
    for name in ("iterable.nothing", "nothing"):
        done = loader("transform", "--select", name)
        assert done.returncode == 2
        assert f"No table matches {name}." in done.stderr
    assert filled.execute("select count(*) from raw.transforms where whole").fetchone() == before
