"""Destinations and their deliveries for tests: a table tracks without dbt, and a clock that moves without waiting."""

import json
import math
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from loader.destinations.clock import Clock
from loader.destinations.delivery import Delivery
from loader.destinations.shared import Shared
from loader.postgres.database import Database
from loader.raw.destinations import Destination, add_destination, find_destination
from tests.support.receivers import Receiver

_TRACKS = """
    create schema if not exists {0};
    create table if not exists {0}.tracks (
        id varchar(1024) primary key, received_at timestamptz, "timestamp" timestamptz, event text
    );
    insert into raw.cursors (model, source) values ('tracks', '{0}') on conflict do nothing
"""
_FILL = """
    insert into {0}.tracks
    select distinct on (message_id) message_id, received_at, raw.read_call_time(payload, received_at), collection
    from raw.events
    where
        source = '{0}'
        and collection is not null
        -- The older events are there, so a run costs no more with many events.
        and load_xid >= coalesce(
            (select pg_snapshot_xmin(snapshot) from raw.cursors where model = 'tracks' and source = '{0}'), '0'
        )
    order by message_id, seq
    on conflict do nothing
"""
_LAND_NUMBERS = """
    insert into raw.events (source, collection, message_id, payload, received_at)
    select
        'iterable',
        'email_opened',
        'm' || number,
        jsonb_build_object('type', 'track', 'event', 'Email Opened', 'userId', 'u', 'messageId', 'm' || number),
        clock_timestamp() - %(days)s * interval '1 day' * (%(end)s - number) / %(count)s
    from generate_series(%(start)s, %(end)s - 1) as number
"""
_MOVE = """
    update raw.cursors
    set snapshot = %s, last_seq = greatest(last_seq, (select coalesce(max(seq), 0) from raw.events where source = %s))
    where model = 'tracks' and source = %s
"""


class MovingClock:
    """A clock whose waits take no time: each wait moves the clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = 0.0
        self._start = datetime.now(UTC)
        self.waits: list[float] = []

    def now(self) -> datetime:
        """Return the moved time."""
        return self._start + timedelta(seconds=self._moved)

    def seconds(self) -> float:
        """Return the seconds that the waits have moved."""
        return self._moved

    def wait(self, stop: threading.Event, seconds: float) -> None:
        """Move the clock instead of waiting."""
        if not stop.is_set():
            self.move(seconds)
            with self._lock:
                self.waits.append(seconds)

    def move(self, seconds: float) -> None:
        """Move the clock."""
        with self._lock:
            self._moved += seconds

    def ahead_seconds(self) -> float:
        """Return the seconds that the clock has moved."""
        return self._moved


def make_tracks(connection: psycopg.Connection, source: str = "iterable") -> None:
    """Create the table tracks of a source, as far as deliveries read it."""
    connection.execute(_TRACKS.format(source))


def fill_tracks(connection: psycopg.Connection, source: str = "iterable") -> None:
    """Let tracks read every event that has been committed, like a run of the transform."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        row = connection.execute("select pg_current_snapshot()::text").fetchone()
        assert row is not None
        connection.execute(_FILL.format(source))
        connection.execute(_MOVE, [row[0], source, source])


def land_calls(connection: psycopg.Connection, *calls: Mapping[str, Any], source: str = "iterable") -> None:
    """Land calls in one transaction; `messageId`, `type` and `userId` have defaults."""
    rows = []
    for call in calls:
        whole = {"type": "track", "userId": "u1"} | dict(call)
        is_track = whole["type"] == "track"
        whole |= {"event": "Email Opened"} if is_track and "event" not in whole else {}
        rows.append((source, "email_opened" if is_track else None, whole["messageId"], json.dumps(whole)))
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "insert into raw.events (source, collection, message_id, payload) values (%s, %s, %s, %s)", rows
        )


def land_many(connection: psycopg.Connection, ids: list[str], users: int = 7) -> None:
    """Land one event of each id, of some users in turn."""
    land_calls(connection, *({"messageId": each, "userId": f"u{n % users}"} for n, each in enumerate(ids)))


def land_numbers(connection: psycopg.Connection, count: int, *, start: int = 0, days: float = 0.0) -> None:
    """Land many events of one user in one statement, with the ids of `ids` and times of receipt up to now.

    Args:
        connection: A connection in autocommit.
        count: Number of events.
        start: The number of the first event.
        days: The first event was received so many days ago.
    """
    connection.execute(_LAND_NUMBERS, {"start": start, "end": start + count, "days": days, "count": count})


def ids(count: int, start: int = 0) -> list[str]:
    """Return ids of events."""
    return [f"m{number}" for number in range(start, start + count)]


def new_destination(
    connection: psycopg.Connection,
    kind: str,
    *,
    name: str = "cdp",
    from_start: bool = True,
    filters: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Destination:
    """Add a destination, and return it."""
    add_destination(connection, name, kind, settings, filters or {}, from_start=from_start)
    return find_destination(connection, name)


def add_segment(connection: psycopg.Connection, receiver: Receiver, **settings: Any) -> Destination:
    """Add a destination of the kind `segment` that begins with the first event, and return it."""
    return new_destination(connection, "segment", url=receiver.url, key="env:DESTINATION_KEY", **settings)


def deliver(
    database: Database,
    name: str = "cdp",
    *,
    clock: Clock | None = None,
    replay: int = 0,
    rounds: int = 1000,
    shared: Shared | None = None,
    patience_seconds: float = math.inf,
) -> None:
    """Deliver until nothing waits, or the receiver takes nothing for so many seconds."""
    with database.connect(autocommit=True) as connection:
        found = find_destination(connection, name)
        delivery = Delivery(
            connection,
            found.id,
            replay,
            clock=clock or MovingClock(),
            stop=threading.Event(),
            shared=shared,
            patience_seconds=patience_seconds,
        )
        try:
            for _ in range(rounds):
                if not delivery.work():
                    return
        finally:
            delivery.close()


def change_settings(connection: psycopg.Connection, found: Destination, **settings: object) -> None:
    """Change some settings of a destination."""
    connection.execute(
        "update raw.destinations set settings = settings || %s, version = version + 1 where id = %s",
        [Jsonb(settings), found.id],
    )


def conserved(connection: psycopg.Connection, name: str = "cdp") -> dict[str, int]:
    """Return the numbers of a destination, and check that every event is accounted for."""
    row = connection.execute(
        "select sum(events)::int, sum(delivered)::int, sum(filtered)::int, sum(repeated)::int, sum(dead)::int"
        " from raw.delivery_conservation where destination = %s",
        [name],
    ).fetchone()
    assert row is not None
    events, *parts = row
    assert events == sum(parts), row
    return dict(zip(("delivered", "filtered", "repeated", "dead"), parts, strict=True))
