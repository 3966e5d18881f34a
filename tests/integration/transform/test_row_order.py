"""The order of a table's rows: events of a day stay on few pages, and a large increment comes in parts."""

from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from tests.support.dbt_runs import run
from tests.support.factories import insert_event
from tests.support.served_tables import everything, law

MODELS = ("email_opened", "tracks")
DAYS, PER_DAY = 12, 100

# Random ids, in the order of time. Every 50th event repeats the id of the event before.
HISTORY = """
    insert into raw.events (source, collection, message_id, received_at, payload)
    select
        'iterable',
        case mod(n, 3) when 0 then 'email_delivered' else 'email_opened' end,
        md5('m' || case mod(n, 50) when 0 then n - 1 else n end),
        timestamptz '2026-01-01' + n * interval '1 day' / %(per_day)s::int,
        jsonb_build_object('type', 'track', 'event', 'Email Opened', 'userId', repeat('u', 200))
    from generate_series(%(first)s::int, %(last)s::int) as n
"""


@pytest.fixture
def connection(unfilled: Database) -> Iterator[psycopg.Connection]:
    """A connection on which every statement is on its own."""
    with unfilled.connect(autocommit=True) as opened:
        yield opened


def land_days(connection: psycopg.Connection, first: int, last: int) -> None:
    """Land the events of some days, in the order of time."""
    numbers = {"per_day": PER_DAY, "first": first * PER_DAY + 1, "last": last * PER_DAY}
    connection.execute(HISTORY, numbers)


def set_part(connection: psycopg.Connection, events: int) -> None:
    """Let a run cut its increment into parts of some events."""
    row = connection.execute("select pg_get_functiondef('raw.insertion_order(jsonb)'::regprocedure)").fetchone()
    assert row is not None
    assert "200000" in row[0]
    connection.execute(row[0].replace("200000", str(events)))


def share_of_pages(connection: psycopg.Connection, table: str, day: int) -> float:
    """Return the share of a table's pages that hold rows of a day."""
    row = connection.execute(
        f"""
        select
            count(distinct page) filter (where date_trunc('day', received_at) = date '2026-01-01' + %(day)s::int)
            / count(distinct page)::float
        from (select (ctid::text::point)[0] as page, received_at from {table}) as placed
        """,
        {"day": day},
    ).fetchone()
    assert row is not None
    return float(row[0])


def test_the_rows_of_a_day_stay_on_few_pages(
    unfilled: Database, unfilled_settings: Settings, connection: psycopg.Connection
) -> None:
    """After a first fill, after an increment in parts, and after a full refresh; `tracks` reads many partitions."""
    set_part(connection, PER_DAY)
    land_days(connection, 0, DAYS)
    run(unfilled, unfilled_settings, *MODELS)
    for table in MODELS:
        assert share_of_pages(connection, f"iterable.{table}", DAYS // 2) < 2.5 / DAYS

    land_days(connection, DAYS, 2 * DAYS)
    run(unfilled, unfilled_settings, *MODELS)
    for table in MODELS:
        assert share_of_pages(connection, f"iterable.{table}", DAYS // 2) < 2.5 / (2 * DAYS)
        assert share_of_pages(connection, f"iterable.{table}", DAYS + DAYS // 2) < 4 / (2 * DAYS)
    law(connection)

    run(unfilled, unfilled_settings, *MODELS, full_refresh=True)
    for table in MODELS:
        assert share_of_pages(connection, f"iterable.{table}", DAYS // 2) < 4 / (2 * DAYS)


def test_an_increment_in_parts_equals_a_rebuild(small: Database, small_settings: Settings) -> None:
    """Ids come again within a part, across parts and from earlier runs. The first landed event counts."""
    with small.connect(autocommit=True) as reader:
        set_part(reader, 2)
        for message_id in ("a", "b", "b", "c"):
            insert_event(reader, "email_opened", message_id)
        run(small, small_settings, *MODELS)
        for number, message_id in enumerate(("d", "d", "a", "e", "f", "d", "g", "e")):
            insert_event(reader, "email_opened", message_id, campaign="no number", mark=f"u{number}")
        run(small, small_settings, *MODELS)
        users = reader.execute("select id, user_id from iterable.email_opened where id >= 'd' order by id").fetchall()
        assert users == [("d", "u0"), ("e", "u3"), ("f", "u4"), ("g", "u6")]
        before = everything(reader)
        assert [row[1] for row in before["mismatches"]] == ["d", "e", "f", "g"]
        law(reader)
        run(small, small_settings, *MODELS, full_refresh=True)
        assert everything(reader) == before


def insertion_order(
    connection: psycopg.Connection, rows: int, first: int, last: int, *, is_created: bool = False
) -> str:
    """Return the SQL of the order in which a run inserts so many rows; empty without an order."""
    query = """
        select coalesce(raw.insertion_order(jsonb_build_object(
            'is_created', %s::boolean, 'is_own_sql', false,
            'rows', %s::bigint, 'first_seq', %s::bigint, 'last_seq_read', %s::bigint
        )), '')
    """
    row = connection.execute(query, (is_created, rows, first, last)).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(
    ("rows", "first", "last"), [(400_001, 1, 400_001), (200_001, 7, 9_000_000), (1_000_000, 5, 1_000_005)]
)
def test_parts_follow_the_landing_order(connection: psycopg.Connection, rows: int, first: int, last: int) -> None:
    """The first and the last event are in the first and the last part, whatever lies between the numbers."""
    part, _, then = insertion_order(connection, rows, first, last).partition(", ")
    assert then == '"id"'
    numbers = connection.execute(
        f"select {part} from (values (%s::bigint), (%s)) as events (seq)",  # type: ignore[arg-type]
        (first, last),
    ).fetchall()
    assert numbers == [(0,), ((rows - 1) // 200_000,)]


def test_a_small_increment_is_one_part(connection: psycopg.Connection) -> None:
    """A first fill has no order, however many events it has."""
    assert insertion_order(connection, 200_000, 1, 5_000_000) == '"id"'
    assert not insertion_order(connection, 5_000_000, 1, 5_000_000, is_created=True)
