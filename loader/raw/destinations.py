"""Keeps the destinations in raw.destinations: adds, changes, pauses and removes them, and records how they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from loader.errors import UsageError
from loader.postgres.statements import read_statement

_COLUMNS = """
    id, name, kind, settings, filters, version, state, pause_reason, last_error, state_since, next_try_at,
    last_delivered_at, requests, notes, created_at
"""
_LIST = f"select {_COLUMNS} from raw.destinations order by name"  # noqa: S608 - columns of this module
_FIND = f"select {_COLUMNS} from raw.destinations where name = %s"  # noqa: S608
_READ = f"select {_COLUMNS} from raw.destinations where id = %s"  # noqa: S608
_ADD = """
    insert into raw.destinations (name, kind, settings, filters) values (%s, %s, %s, %s)
    on conflict (name) do nothing returning id
"""
_ADD_CURSORS = read_statement(__file__, "add_cursors")
PROGRESS = read_statement(__file__, "progress")
_PAUSE = """
    update raw.destinations
    set state = 'paused', pause_reason = 'manual', state_since = clock_timestamp(), next_try_at = null
    where id = %s
"""
_RESUME = """
    update raw.destinations
    set state = 'active', pause_reason = null, last_error = null, state_since = clock_timestamp(), next_try_at = null
    where id = %s
"""
_RECORD = read_statement(__file__, "record")
_CHANGE_FILTERS = "update raw.destinations set filters = %s, version = version + 1 where id = %s"
_REMOVE = "delete from raw.destinations where id = %s"
_WAREHOUSE = "select warehouse_id::text from raw.cluster"


@dataclass(frozen=True)
class Destination:
    """A destination, as raw.destinations holds it.

    Attributes:
        settings: The address and the limits; never a secret.
        filters: The calls that the destination gets, and their shape.
        version: Counts the changes.
        state: `active`, `failing` or `paused`.
        pause_reason: `manual`, `config` or `rejecting`; None unless the destination is paused.
    """

    id: int
    name: str
    kind: str
    settings: dict[str, Any]
    filters: dict[str, Any]
    version: int
    state: str
    pause_reason: str | None
    last_error: str | None
    state_since: datetime
    next_try_at: datetime | None
    last_delivered_at: datetime | None
    requests: dict[str, int]
    notes: dict[str, int]
    created_at: datetime

    @property
    def waits_for_person(self) -> bool:
        """Whether nothing is sent until a person resumes the destination."""
        return self.state == "paused" and self.pause_reason != "config"


@dataclass(frozen=True)
class Progress:
    """The progress of the delivery of one source, or of a replay.

    Attributes:
        replay: 0 for the live delivery; else the number of the replay.
        waiting: Number of events that tracks has read and the destination has not got; the count stops at 10,000.
        oldest_seconds: Seconds since the landing of the oldest of these events; None if none is waiting.
        dead: Number of events that the destination did not accept.
        retrying: Number of dead events that the worker tries again by itself.
        is_finished: Whether a replay has reached its end.
    """

    destination: str
    source: str
    replay: int
    waiting: int
    oldest_seconds: float | None
    delivered: int
    filtered: int
    repeated: int
    dead: int
    retrying: int
    is_finished: bool


def add_destination(
    connection: psycopg.Connection,
    name: str,
    kind: str,
    settings: Mapping[str, Any],
    filters: Mapping[str, Any],
    *,
    from_start: bool,
) -> int:
    """Add a destination with its cursors, and return its id.

    Args:
        connection: A connection in autocommit.
        name: The name.
        kind: The kind.
        settings: The address and the limits.
        filters: The calls that the destination gets.
        from_start: Whether the destination gets the events that have landed already.

    Raises:
        UsageError: A destination with this name exists.
    """
    with connection.transaction():
        row = connection.execute(_ADD, [name, kind, Jsonb(dict(settings)), Jsonb(dict(filters))]).fetchone()
        if row is None:
            raise UsageError(f"Destination {name} exists already. `loader destination list` shows the destinations.")
        connection.execute(_ADD_CURSORS, {"destination": row[0], "from_start": from_start})
    return int(row[0])


def list_destinations(connection: psycopg.Connection) -> list[Destination]:
    """Return the destinations by name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return [Destination(**row) for row in cursor.execute(_LIST)]


def find_destination(connection: psycopg.Connection, name: str) -> Destination:
    """Return a destination by its name.

    Raises:
        UsageError: There is no such destination.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_FIND, [name]).fetchone()
    if row is None:
        raise UsageError(f"There is no destination {name}. `loader destination list` shows the destinations.")
    return Destination(**row)


def read_destination(connection: psycopg.Connection, number: int) -> Destination | None:
    """Return a destination by its id; None if it was removed."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_READ, [number]).fetchone()
    return Destination(**row) if row else None


def has_destinations(connection: psycopg.Connection) -> bool:
    """Return whether there is a destination."""
    return connection.execute("select exists (select from raw.destinations)").fetchone() == (True,)


def pause_destination(connection: psycopg.Connection, number: int) -> None:
    """Stop the delivery to a destination until a person resumes it."""
    connection.execute(_PAUSE, [number])


def resume_destination(connection: psycopg.Connection, number: int) -> None:
    """Continue the delivery to a destination."""
    connection.execute(_RESUME, [number])


def remove_destination(connection: psycopg.Connection, number: int) -> None:
    """Remove a destination with its cursors and dead letters."""
    connection.execute(_REMOVE, [number])


def change_filters(connection: psycopg.Connection, number: int, filters: Mapping[str, Any]) -> None:
    """Replace the filters of a destination; they act from the next window."""
    connection.execute(_CHANGE_FILTERS, [Jsonb(dict(filters)), number])


def record_state(
    connection: psycopg.Connection,
    number: int,
    state: str,
    *,
    pause_reason: str | None = None,
    error: str | None = None,
    next_try_seconds: float | None = None,
    requests: Mapping[str, int] | None = None,
    notes: Mapping[str, int] | None = None,
    has_delivered: bool = False,
) -> None:
    """Record how a delivery is going; a pause by a person stays.

    Args:
        connection: A connection in autocommit.
        number: The destination.
        state: `active`, `failing` or `paused`.
        pause_reason: The reason of the pause.
        error: The reason of the failure.
        next_try_seconds: Seconds to the next try.
        requests: Numbers of requests since the last record, by status.
        notes: Numbers of remarks since the last record.
        has_delivered: Whether events were delivered since the last record.
    """
    connection.execute(
        _RECORD,
        {
            "id": number,
            "state": state,
            "pause_reason": pause_reason,
            "error": error,
            "next_try": next_try_seconds,
            "requests": Jsonb(dict(requests or {})),
            "notes": Jsonb(dict(notes or {})),
            "has_delivered": has_delivered,
        },
    )


def read_progress(connection: psycopg.Connection) -> list[Progress]:
    """Return the progress of every delivery, by destination, replay and source."""
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("set local enable_seqscan = off")
        return [Progress(**row) for row in cursor.execute(PROGRESS)]


def read_warehouse_id(connection: psycopg.Connection) -> str:
    """Return the id of this warehouse, with which forwarded calls are marked."""
    row = connection.execute(_WAREHOUSE).fetchone()
    return str(row[0]) if row else ""
