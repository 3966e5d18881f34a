"""The kept part of a value: in raw everything but its bytes, in the tables the values of PostgreSQL's types."""

import json
from collections.abc import Iterator

import psycopg
import pytest

from loader.events.segment import parse_lines
from loader.postgres.database import Database
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.raw.rescan import rescan
from loader.settings import Settings
from tests.conftest import loader_here
from tests.support.dbt_runs import run
from tests.support.served_tables import everything

MODELS = ("email_opened", "tracks")


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit."""
    with small.connect(autocommit=True) as opened:
        yield opened


def send(connection: psycopg.Connection, *parts: str) -> None:
    """Land events, each given as its id and its call's fields beside the fields of every call."""
    lines = []
    for part in parts:
        message_id, fields = part.split(" ", 1)
        lines.append(f'{{"type":"track","event":"Email Opened","userId":"u","messageId":"{message_id}",{fields}}}')
    with SchemaRegistry().transaction(connection) as seen:
        land(connection, "iterable", "file", parse_lines("\n".join(lines).encode(), 0), seen)


def mismatches(connection: psycopg.Connection) -> list[tuple[str, str, str]]:
    """Return the listed mismatches, by event and column."""
    return connection.execute("select event_id, column_name, value from raw.mismatches order by 1, 2").fetchall()


def test_a14_a_time_that_loses_digits_is_listed(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """PostgreSQL keeps six digits of a second. The column has the rounded time, and the note has all digits."""
    send(
        connection,
        'a "properties":{"at":"2026-03-04T15:00:02.123456789Z"}',
        'b "properties":{"at":"2026-03-04T15:00:02.123456000Z"}',
        'c "properties":{"at":"2026-03-04T15:00:02.1234567+01:00"}',
        'd "properties":{"at":"2026-03-04T15:00:02.123456+01:00"}',
    )
    run(small, small_settings, *MODELS)
    shown = connection.execute("select id, (at at time zone 'UTC')::text from iterable.email_opened order by id")
    assert shown.fetchall() == [
        ("a", "2026-03-04 15:00:02.123457"),
        ("b", "2026-03-04 15:00:02.123456"),
        ("c", "2026-03-04 14:00:02.123457"),
        ("d", "2026-03-04 14:00:02.123456"),
    ]
    assert mismatches(connection) == [
        ("a", "at", "2026-03-04T15:00:02.123456789Z"),
        ("c", "at", "2026-03-04T15:00:02.1234567+01:00"),
    ]
    before = everything(connection)
    run(small, small_settings, *MODELS, full_refresh=True)
    assert everything(connection) == before
    # Text holds every digit. After the column is wider, no digit is lost.
    send(connection, 'e "properties":{"at":"soon"}')
    run(small, small_settings, *MODELS)
    assert mismatches(connection) == []
    widened = connection.execute("select at from iterable.email_opened where id = 'a'").fetchone()
    assert widened == ("2026-03-04T15:00:02.123456789Z",)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [("double precision", {"c", "d"}), ("real", {"b", "c", "d"}), ("numeric(10,2)", {"b", "c", "d"})],
)
def test_a14_a_number_that_a_type_by_hand_rounds_is_listed(
    connection: psycopg.Connection, small: Database, small_settings: Settings, kind: str, lost: set[str]
) -> None:
    """The type that a team has given a column counts, and the lost digits are listed."""
    send(connection, 'w "properties":{"total":1.5}')
    run(small, small_settings, *MODELS)
    connection.execute(f"alter table iterable.email_opened alter column total type {kind}")  # type: ignore[call-overload]
    send(
        connection,
        'a "properties":{"total":12.25}',
        'b "properties":{"total":1234567.125}',
        'c "properties":{"total":1234567.12345678901}',
        'd "properties":{"total":"9007199254740993"}',
        'e "properties":{"total":0.5}',
    )
    run(small, small_settings, *MODELS)
    # The last number exceeds numeric(10,2) and is NULL. The others are rounded.
    assert {event for event, _, _ in mismatches(connection)} == lost


def test_a14_a_context_that_is_no_object_is_noted(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """Each table lists the first such event. The event lands, and raw keeps its whole context."""
    send(connection, *(f'n{n} "context":{{"ip":"::1"}},"properties":{{}}' for n in range(50)))
    send(connection, 'a "context":"mobile"', 'b "context":[1]', 'c "context":null', 'd "context":{"ip":"::2"}')
    run(small, small_settings, *MODELS)
    noted = "select model, path, reason from raw.collisions order by model"
    expected = [("email_opened", ["context"], "no_object"), ("tracks", ["context"], "no_object")]
    assert connection.execute(noted).fetchall() == expected
    first = "select first_event_id, types from raw.properties where path = array['context']"
    assert connection.execute(first).fetchall() == [("a", ["text"])]
    kept = connection.execute("select payload -> 'context' from raw.events where message_id in ('a', 'b') order by seq")
    assert kept.fetchall() == [("mobile",), ([1],)]
    shown = connection.execute("select id, context_ip from iterable.email_opened where id in ('a', 'd') order by id")
    assert shown.fetchall() == [("a", None), ("d", "::2")]
    told = loader_here(small_settings)("status")
    assert "no_object" in told.stdout

    connection.execute("delete from raw.properties where path = array['context']")
    rescan(connection)
    assert connection.execute(first).fetchall() == [("a", ["text"])]


def test_a14_the_sql_command_shows_times_outside_pythons_range(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """Time zones move the first day of the year 1 to the year before, and the last of 9999 to the year after."""
    send(
        connection,
        'a "properties":{"at":"0001-01-01T00:00:00+15:59"}',
        'b "properties":{"at":"9999-12-31T23:59:59-15:59"}',
        'c "properties":{"at":"2026-03-04T15:00:02Z"}',
    )
    run(small, small_settings, *MODELS)
    loader = loader_here(small_settings)
    query = "select id, at from iterable.email_opened order by id"
    for form in ("table", "csv", "json"):
        shown = loader("sql", query, "--format", form)
        assert shown.returncode == 0, shown.stderr
        assert "BC" in shown.stdout
        assert "10000-01-01" in shown.stdout
        assert "2026-03-04" in shown.stdout
    assert mismatches(connection) == []


def test_a14_raw_keeps_every_value_and_the_last_of_equal_keys(connection: psycopg.Connection) -> None:
    """Raw keeps every value, and each number by its value. Keys are sorted, and the last of two equal keys is kept."""
    send(
        connection,
        'a "properties":{"longer":1,"b":1.10,"a":1e2,"twice":1,"twice":2,"large":1180591620717411303424,"e":"\\u00e9"}',
    )
    [(kept,)] = connection.execute("select (payload -> 'properties')::text from raw.events").fetchall()
    assert kept == '{"a": 100, "b": 1.10, "e": "é", "large": 1180591620717411303424, "twice": 2, "longer": 1}'
    assert json.loads(kept)["twice"] == 2
