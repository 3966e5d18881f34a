"""The times of a call: read in each unambiguous form, and recorded as a mismatch otherwise."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from loader.events.model import Event
from loader.events.timestamps import read_moment
from loader.postgres.database import Database
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.settings import Settings
from tests.support.dbt_runs import run
from tests.support.served_tables import everything

MOMENT = datetime(2026, 3, 4, 15, 0, 2, tzinfo=UTC)
RECEIVED = datetime(2026, 3, 4, 15, 0, 9, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 4, tzinfo=UTC)

# Forms of one moment, and that moment.
READ = {
    "2026-03-04T15:00:02Z": MOMENT,
    "2026-03-04T15:00:02.500Z": MOMENT + timedelta(milliseconds=500),
    "2026-03-04 15:00:02 +00:00": MOMENT,
    "2026-03-04 15:00:02 +0000": MOMENT,
    "2026-03-04T16:00:02+01": MOMENT,
    "2026-03-04T15:00:02": MOMENT,
    "2026-03-04T15:00:02.500000.000Z": MOMENT + timedelta(milliseconds=500),
    "2026-03-04t15:00:02z": MOMENT,
    " 2026-03-04T15:00:02Z\n": MOMENT,
    "2026-03-04": MIDNIGHT,
    "2026-03-04Z": MIDNIGHT,
    "20260304T150002Z": MOMENT,
    "20260304T150002.500Z": MOMENT + timedelta(milliseconds=500),
    "20260304T160002+0100": MOMENT,
    "20260304T1500": MOMENT.replace(second=0),
    "1772636402": MOMENT,
    "1772636402.5": MOMENT + timedelta(milliseconds=500),
    "1772636402500": MOMENT + timedelta(milliseconds=500),
    "1772636402500.25": MOMENT + timedelta(milliseconds=500, microseconds=250),
    "-1772636402": datetime(1970, 1, 1, tzinfo=UTC) - timedelta(seconds=1772636402),
    "Wed, 04 Mar 2026 15:00:02 +0000": MOMENT,
    "Wed, 4 Mar 2026 10:00:02 -0500": MOMENT,
    "04 Mar 2026 15:00:02 GMT": MOMENT,
    "Wed, 04 Mar 2026 15:00 UT": MOMENT.replace(second=0),
}
# Texts that are not a time, or that may mean several moments.
NOT_READ = [
    "yesterday",
    "now",
    "20260304",
    "20260304150002",
    "2026",
    "0",
    "03/04/2026",
    "2026-03",
    "2026-13-01",
    "2026-02-30",
    "2026-03-04T25:00:00Z",
    "2026-03-04T15:00:02+99:00",
    "Wed, 04 Mar 26 15:00:02 +0000",
    "Wed, 04 Mar 2026 15:00:02",
    "04 Mrz 2026 15:00:02 GMT",
    "99999999999999999",
    "1.7e9",
    "0000-01-01",
    "infinity",
]


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit, whose time zone is not UTC."""
    with small.connect(autocommit=True) as opened:
        opened.execute("set timezone = 'America/New_York'")
        yield opened


def send(connection: psycopg.Connection, number: int, *, collection: str = "email_opened", **fields: object) -> None:
    """Land an event with the given fields of its call."""
    payload = {"type": "track", "event": "Email Opened", "userId": "u", "properties": {"campaignId": 1}} | fields
    event = Event(json.dumps(payload).encode(), 0, f"e{number:02}", collection, RECEIVED)
    with SchemaRegistry().transaction(connection) as seen:
        land(connection, "iterable", "file", [event], seen)


def noted(connection: psycopg.Connection) -> list[tuple[str, str, str, str]]:
    """Return the values that no table holds."""
    return connection.execute(
        "select event_id, model, column_name, value from raw.mismatches order by 1, 2, 3"
    ).fetchall()


@pytest.mark.parametrize(("written", "moment"), READ.items())
def test_a10_a_time_is_read_in_any_form_that_says_one_moment(
    connection: psycopg.Connection, written: str, moment: datetime
) -> None:
    """The session's time zone and order of dates do not matter. Times of Iterable's events are read in the same way."""
    for style in ("ISO, MDY", "German, DMY"):
        connection.execute(f"set datestyle = '{style}'")
        assert connection.execute("select raw.read_time(%s) = %s", (written, moment)).fetchone() == (True,)
    if read := read_moment(written):
        assert read == moment


@pytest.mark.parametrize("written", NOT_READ)
def test_a10_a_time_that_may_mean_several_moments_is_not_read(connection: psycopg.Connection, written: str) -> None:
    """Such a time is never an error."""
    assert connection.execute("select raw.read_time(%s)", (written,)).fetchone() == (None,)


def test_a10_a_time_in_another_form_is_in_its_column(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """This holds for the time of the event and the time of sending. The text stays as it was sent."""
    for number, (written, moment) in enumerate(READ.items()):
        sent: object = int(written) if written.isdigit() else written
        send(connection, number, timestamp=sent, sentAt=sent)
        send(connection, number + 50, originalTimestamp=sent, collection="order_placed")
        assert moment
    run(small, small_settings)
    for table, number in (("email_opened", 0), ("tracks", 0), ("tracks", 50), ("order_placed", 50)):
        rows = connection.execute(
            f'select original_timestamp, "timestamp", sent_at from iterable.{table}'
            " where id between %s and %s order by id",
            (f"e{number:02}", f"e{number + 49:02}"),
        ).fetchall()
        assert [row[0] for row in rows] == list(READ)
        # Sending and event have the same time, so the event's time is the time of receipt.
        assert [row[1] for row in rows] == [RECEIVED if number == 0 else moment for moment in READ.values()]
        assert [row[2] for row in rows] == [moment if number == 0 else None for moment in READ.values()]
    assert noted(connection) == []


def test_a10_a_time_that_cannot_be_read_is_noted(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """Each event is recorded once, at its own table. A rebuild records the same."""
    for number, written in enumerate(NOT_READ):
        send(connection, number, timestamp=written, sentAt=written)
        run(small, small_settings) if number == 0 else None
    send(connection, 90, timestamp="", sentAt=None)
    send(connection, 91, timestamp="soon", collection="")
    send(connection, 92, timestamp="soon", sentAt="later", collection="order_placed")
    run(small, small_settings)
    expected = [
        (f"e{number:02}", "email_opened", column, written)
        for number, written in enumerate(NOT_READ)
        for column in ("sent_at", "timestamp")
    ]
    expected += [("e91", "tracks", "timestamp", "soon")]
    expected += [
        ("e92", table, *lost)
        for table in ("order_placed", "tracks")
        for lost in (("sent_at", "later"), ("timestamp", "soon"))
    ]
    assert noted(connection) == expected
    times = connection.execute('select distinct "timestamp", sent_at from iterable.tracks').fetchall()
    assert times == [(RECEIVED, None)]
    increments = everything(connection)
    run(small, small_settings, full_refresh=True)
    assert everything(connection) == increments


def test_a10_a_timestamp_computed_by_segment_is_no_mismatch(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """A call from Segment's raw logs keeps its timestamp, whatever the client has sent."""
    logged = {"originalTimestamp": "soon", "timestamp": "2026-03-04T15:00:02Z", "receivedAt": RECEIVED.isoformat()}
    send(connection, 1, **logged)
    send(connection, 2, **(logged | {"receivedAt": "2026-03-04T14:00:00Z"}))
    run(small, small_settings, "email_opened", "tracks")
    rows = connection.execute('select "timestamp" from iterable.email_opened order by id').fetchall()
    assert rows == [(MOMENT,), (RECEIVED,)]
    assert noted(connection) == [("e02", "email_opened", "timestamp", "soon")]


def test_a10_a_forwarded_call_has_the_time_that_the_other_instance_computed(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """Its `timestamp` is corrected already by the sender's clock, and now by the other instance's."""
    sent = (RECEIVED - timedelta(minutes=5)).isoformat()
    times = {"timestamp": (MOMENT - timedelta(minutes=5)).isoformat(), "originalTimestamp": "2020-01-01T00:00:00Z"}
    send(connection, 1, sentAt=sent, **times, context={"via": ["other"]})
    send(connection, 2, sentAt=sent, **(times | {"originalTimestamp": times["timestamp"], "timestamp": "soon"}))
    send(connection, 3, sentAt=sent, timestamp=times["timestamp"], context={"via": ["other"]})
    run(small, small_settings, "email_opened", "tracks")
    for table in ("email_opened", "tracks"):
        rows = connection.execute(
            f'select "timestamp", original_timestamp from iterable.{table} order by id'
        ).fetchall()
        assert [moment for moment, _ in rows] == [MOMENT] * 3
        assert rows[0][1] == "2020-01-01T00:00:00Z"
    assert (
        connection.execute(
            "select raw.read_call_time(payload, received_at) from raw.events order by message_id"
        ).fetchall()
        == [(MOMENT,)] * 3
    )


def test_a10_of_a_repeated_id_the_first_event_counts(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """Only the losses of that row are recorded."""
    send(connection, 1, timestamp="2026-03-04T15:00:02Z")
    send(connection, 1, timestamp="soon")
    send(connection, 1, timestamp="sooner", collection="order_placed")
    send(connection, 2, timestamp="soon", collection="order_placed")
    send(connection, 2, timestamp="2026-03-04T15:00:02Z", collection="order_placed")
    run(small, small_settings)
    assert noted(connection) == [
        ("e01", "order_placed", "timestamp", "sooner"),
        ("e02", "order_placed", "timestamp", "soon"),
        ("e02", "tracks", "timestamp", "soon"),
    ]
