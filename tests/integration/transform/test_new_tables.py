"""The number of new tables an hour for events without a model, and the length of their lists in `loader status`."""

import dataclasses

import psycopg
import pytest

from loader.cli.output import show_status
from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.scheduler import Schedule
from loader.transform.status import read_status
from tests.support.dbt_runs import run
from tests.support.factories import insert_event

FOUND = ("found_collections", "tracks")


def land_names(connection: psycopg.Connection, count: int, prefix: str = "name") -> list[str]:
    """Land one event of each of so many names, recorded as landing records them; return their collections."""
    names = [f"{prefix}_{number:03}" for number in range(count)]
    for name in names:
        insert_event(connection, name, name)
        connection.execute(
            "insert into raw.collections (source, collection, event, first_event_id) values ('iterable', %s, %s, %s)",
            (name, name, name),
        )
    return names


def tables_of(connection: psycopg.Connection, names: list[str]) -> list[str]:
    """Return the collections with a table."""
    query = (
        "select relname from pg_class where relnamespace = 'iterable'::regnamespace and relname = any(%s) order by 1"
    )
    return [name for (name,) in connection.execute(query, (names,))]


def pass_an_hour(connection: psycopg.Connection) -> None:
    """Make the existing tables an hour older."""
    connection.execute("update raw.collections set admitted_at = admitted_at - interval '61 minutes'")


def test_c11_a_source_gets_a_limited_number_of_new_tables_an_hour(small: Database, small_settings: Settings) -> None:
    """The names seen first come first. The others follow hour by hour, complete, and tracks has all events at once."""
    limited = small_settings.model_copy(update={"new_tables": 2})
    with small.connect(autocommit=True) as connection:
        names = land_names(connection, 5)
        for _ in range(2):
            run(small, limited, *FOUND)
            assert tables_of(connection, names) == names[:2]
        assert connection.execute("select count(*) from iterable.tracks").fetchone() == (5,)
        insert_event(connection, names[4], "later")
        for number in (4, 5):
            pass_an_hour(connection)
            run(small, limited, *FOUND)
            assert tables_of(connection, names) == names[:number]
        rows = connection.execute("select id from iterable.name_004 order by id").fetchall()
        assert rows == [("later",), ("name_004",)]
        assert connection.execute("select * from raw.conservation where missing_in_tracks <> 0").fetchall() == []


def test_c11_tables_over_the_hourly_limit_are_made_an_hour_later(small: Database, small_settings: Settings) -> None:
    """A waiting table is made although no event has landed since, up to the limit of the source."""
    limited = small_settings.model_copy(update={"new_tables": 2, "tables": 3})
    schedule = Schedule(limited, 1)
    with small.connect(autocommit=True) as connection:
        names = land_names(connection, 5)
        run(small, limited)
        assert not schedule._has_news(connection)
        pass_an_hour(connection)
        assert schedule._has_news(connection)
        run(small, limited)
        assert tables_of(connection, names) == names[:3]
        pass_an_hour(connection)
        assert not schedule._has_news(connection)


def test_c11_status_shows_a_bounded_part_of_each_list(
    small: Database, small_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hundreds of names and values of any length fill a screen or two. JSON has all of them."""
    limited = small_settings.model_copy(update={"new_tables": 0})
    with small.connect(autocommit=True) as connection:
        land_names(connection, 300, prefix="name" * 14)
        connection.execute(
            "insert into raw.mismatches (model, source, event_id, column_name, value)"
            " select 'tracks', 'iterable', 'e', repeat('c', 5000) || number, 'v' from generate_series(1, 100) as number"
        )
        run(small, limited, *FOUND)
    with small.engine.connect() as connection:
        state = read_status(connection)
    assert len(state.without_table) == 300
    assert len(state.mismatches) == 100
    show_status(dataclasses.replace(state, runs=[]))
    shown = capsys.readouterr().out
    assert "and 280 more (`loader status --json` shows all)" in shown
    assert len(shown) < 20_000
