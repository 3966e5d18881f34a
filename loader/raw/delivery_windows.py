"""Reads the landed events that a destination has not got, window by window, and moves the cursor of the destination.

A window has the events between two snapshots: events that tracks has read and the cursor has not. A transaction that
commits late is therefore in a later window, and never lost. Within a window, events come in landing order.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from loader.postgres.statements import read_statement

# Number of events after which a window ends. All events of one transaction are in one window.
WINDOW_EVENTS = 5_000

# Number of ids that a delivery remembers, to leave out repeated calls.
REMEMBERED_IDS = 100_000

_ADD_CURSORS = read_statement(__file__, "add_cursors")
_CURSORS = read_statement(__file__, "cursors")
_OPEN = read_statement(__file__, "open")
_PAGE = read_statement(__file__, "page")
_COUNT = read_statement(__file__, "count")
_RECENT_IDS = read_statement(__file__, "recent_ids")
_ADVANCE = read_statement(__file__, "advance")
_CLOSE = read_statement(__file__, "close")
_ADD_DEAD = read_statement(__file__, "add_dead")
_ADD_REPLAY = read_statement(__file__, "add_replay")
_LAST_CALLS = read_statement(__file__, "last_calls")
_COUNT_REPLAY = read_statement(__file__, "count_replay")
_SUPPRESS = """
    insert into raw.destination_suppressions (destination_id, key_sha256) values (%s, %s) on conflict do nothing
"""
_SUPPRESSIONS = "select key_sha256 from raw.destination_suppressions where destination_id = %s"
_REPLAYS = """
    select distinct replay from raw.delivery_cursors
    where destination_id = %s and replay > 0 and finished_at is null
    order by replay
"""
# The planner must not scan all events for a few, or join all of tracks, however old the statistics are.
_BY_INDEX = """
    set local enable_seqscan = off;
    set local enable_hashjoin = off;
    set local enable_mergejoin = off;
    set local jit = off
"""


class LandedCall(msgspec.Struct, frozen=True, gc=False):
    """One landed call, as a delivery reads it.

    Attributes:
        received_at: The time of receipt, in ISO 8601.
        timestamp: The time that tracks has, or would have, for the call; None for a time outside the calendar.
        is_repeated: Whether tracks has another event with the same id.
        is_selected: Whether a replay selects the call by its time; always true for the live delivery.
    """

    seq: int
    load_xid: str
    source: str
    message_id: str
    received_at: str
    timestamp: str | None
    payload: bytes
    is_repeated: bool = False
    is_selected: bool = True


@dataclass(frozen=True)
class Cursor:
    """The cursor of a destination in one source.

    Attributes:
        replay: 0 for the live delivery; else the number of the replay.
        from_snapshot: The events of this snapshot are done.
        to_snapshot: The open window's last events; None between two windows.
        end_snapshot: The last events of a replay; None for the live delivery.
        position: The highest seq that is done in the open window.
        filters: The filters of the open window.
        selection: The events of a replay.
    """

    destination_id: int
    source: str
    replay: int
    from_snapshot: str
    to_snapshot: str | None
    end_snapshot: str | None
    position: int
    filters: dict[str, Any]
    selection: dict[str, Any]

    @property
    def key(self) -> dict[str, Any]:
        """The values that select the cursor's row, and the state in which the cursor was read."""
        return {
            "destination": self.destination_id,
            "source": self.source,
            "replay": self.replay,
            "to_snapshot": self.to_snapshot,
            "position": self.position,
        }


@dataclass(frozen=True)
class Page:
    """The next events of a window, in landing order.

    Attributes:
        is_last: Whether the window has no further event.
    """

    calls: list[LandedCall]
    is_last: bool


@dataclass(frozen=True)
class DeadLetter:
    """An event that a destination did not accept, for raw.dead_letters.

    Attributes:
        retry_seconds: Seconds to the next try; None if the worker makes none by itself.
        suppress: Digests of the keys of its user, about whom nothing is sent any more.
    """

    seq: int
    load_xid: str
    message_id: str
    status: int | None
    reason: str
    answer: str
    retry_seconds: float | None
    suppress: Sequence[bytes] = ()


class MovedCursorError(Exception):
    """Another process has moved a cursor, or the database was restored; the cursor must be read again."""


def add_cursors(connection: psycopg.Connection, destination_id: int) -> None:
    """Add the live cursors of sources that a destination has no cursor for; they begin with the source's first event.

    Args:
        connection: A connection in autocommit.
        destination_id: The destination.
    """
    connection.execute(_ADD_CURSORS, {"destination": destination_id})


def read_cursors(connection: psycopg.Connection, destination_id: int, replay: int) -> list[Cursor]:
    """Return the cursors of a destination that are not finished, one for each source."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_CURSORS, {"destination": destination_id, "replay": replay}).fetchall()
    return [Cursor(**row) for row in rows]


def open_window(connection: psycopg.Connection, cursor: Cursor, *, events: int = WINDOW_EVENTS) -> Cursor | None:
    """Open the next window of a cursor without an open window.

    Args:
        connection: A connection in autocommit.
        cursor: The cursor.
        events: The number of events after which the window ends.

    Returns:
        The cursor with the open window; None if tracks has read no further event.
    """
    with connection.transaction(), connection.cursor(row_factory=dict_row) as opened:
        opened.execute(_BY_INDEX)
        row = opened.execute(_OPEN, cursor.key | {"events": events}).fetchone()
    return Cursor(**row) if row else None


def read_page(connection: psycopg.Connection, window: Cursor, *, events: int, size: int, with_native: bool) -> Page:
    """Return the next events of an open window, in landing order.

    Args:
        connection: A connection in autocommit.
        window: The cursor with the open window.
        events: The largest number of events.
        size: The largest size of the events together, in bytes, as stored. One larger event comes alone.
        with_native: Whether the events keep Iterable's own body.
    """
    statement = read_tracks_of(window.source, _PAGE)
    chosen = {
        "from_snapshot": window.from_snapshot,
        "events": events,
        "size": size,
        "with_native": with_native,
        "since": window.selection.get("since"),
        "until": window.selection.get("until"),
        "by_time": window.selection.get("by") == "time",
    }
    with connection.transaction():
        connection.execute(_BY_INDEX)
        rows = connection.execute(statement, window.key | chosen).fetchall()
    return Page([landed_call(window.source, *row[:8]) for row in rows], not rows or rows[0][8])


def count_window(connection: psycopg.Connection, window: Cursor) -> tuple[int, int]:
    """Return the number of the events that an open window still has, and the highest seq of them."""
    with connection.transaction():
        connection.execute(_BY_INDEX)
        row = connection.execute(_COUNT, window.key | {"from_snapshot": window.from_snapshot}).fetchone()
    return (int(row[0]), int(row[1])) if row and row[0] else (0, window.position)


def read_recent_ids(connection: psycopg.Connection, cursor: Cursor) -> list[str]:
    """Return the ids of the last calls that a cursor has passed, the latest first."""
    statement = read_tracks_of(cursor.source, _RECENT_IDS)
    with connection.transaction():
        connection.execute(_BY_INDEX)
        found = connection.execute(
            statement, cursor.key | {"from_snapshot": cursor.from_snapshot, "most": REMEMBERED_IDS}
        )
        return [message_id for (message_id,) in found.fetchall()]


def read_last_calls(connection: psycopg.Connection, most: int) -> list[LandedCall]:
    """Return the calls that landed last, in landing order."""
    with connection.transaction():
        connection.execute(_BY_INDEX)
        rows = connection.execute(_LAST_CALLS, {"most": most}).fetchall()
    return [landed_call(*row) for row in rows]


def advance(
    connection: psycopg.Connection,
    window: Cursor,
    position: int,
    counts: Mapping[str, int],
    dead: Sequence[DeadLetter] = (),
) -> Cursor:
    """Move a cursor past events of its window, and keep the events that were not accepted, in one transaction.

    Args:
        connection: A connection in autocommit.
        window: The cursor, as it was read or moved last.
        position: The highest seq that is done.
        counts: The numbers of `delivered`, `filtered`, `repeated` and `dead` events among them.
        dead: The events that were not accepted.

    Raises:
        MovedCursorError: The cursor is no longer in this state.
    """
    numbers = {name: counts.get(name, 0) for name in ("delivered", "filtered", "repeated", "dead")}
    # Without dead letters it is one statement, whose commit needs no round trip of its own.
    with connection.transaction() if dead else nullcontext():
        moved = connection.execute(_ADVANCE, window.key | numbers | {"new_position": position})
        if moved.rowcount != 1:
            raise MovedCursorError
        for letter in dead:
            connection.execute(_ADD_DEAD, window.key | _values(letter))
            suppress(connection, window.destination_id, letter.suppress)
    return replace(window, position=position)


def suppress(connection: psycopg.Connection, destination_id: int, digests: Sequence[bytes]) -> None:
    """Remember the digests of a user about whom nothing is sent to a destination any more."""
    for digest in digests:
        connection.execute(_SUPPRESS, [destination_id, digest])


def read_suppressions(connection: psycopg.Connection, destination_id: int) -> list[bytes]:
    """Return the digests of the users about whom nothing is sent to a destination."""
    return [bytes(digest) for (digest,) in connection.execute(_SUPPRESSIONS, [destination_id]).fetchall()]


def close_window(connection: psycopg.Connection, window: Cursor) -> None:
    """End a window all of whose events are done.

    Raises:
        MovedCursorError: The cursor is no longer in this state.
    """
    if connection.execute(_CLOSE, window.key).rowcount != 1:
        raise MovedCursorError


def list_replays(connection: psycopg.Connection, destination_id: int) -> list[int]:
    """Return the numbers of the replays of a destination that are not finished."""
    return [number for (number,) in connection.execute(_REPLAYS, [destination_id]).fetchall()]


def add_replay(
    connection: psycopg.Connection, destination_id: int, sources: Sequence[str], selection: Mapping[str, Any]
) -> int:
    """Add the cursors of a replay of the events that the live delivery has passed.

    Args:
        connection: A connection in autocommit.
        destination_id: The destination.
        sources: The schemas of the sources; empty for all.
        selection: The events of the replay.

    Returns:
        The number of the replay.
    """
    row = connection.execute(
        _ADD_REPLAY,
        {"destination": destination_id, "sources": list(sources), "selection": Jsonb(dict(selection))},
    ).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def count_replay(connection: psycopg.Connection, source: str, selection: Mapping[str, Any]) -> int:
    """Return the number of a source's events in the time of a replay, of all names.

    Args:
        connection: A connection in autocommit.
        source: The schema of a source that has tables.
        selection: The events of the replay.
    """
    chosen = {
        "source": source,
        "since": selection.get("since"),
        "until": selection.get("until"),
        "by_time": selection.get("by") == "time",
    }
    row = connection.execute(read_tracks_of(source, _COUNT_REPLAY), chosen).fetchone()
    return int(row[0]) if row else 0


def _values(letter: DeadLetter) -> dict[str, Any]:
    return {
        "seq": letter.seq,
        "load_xid": letter.load_xid,
        "message_id": letter.message_id,
        "status": letter.status,
        "reason": letter.reason,
        "answer": letter.answer,
        "retry_seconds": letter.retry_seconds,
    }


def landed_call(  # noqa: PLR0917 - the columns of a statement
    source: str,
    seq: int,
    load_xid: str,
    message_id: str,
    received_at: str,
    timestamp: str | None,
    payload: str,
    is_repeated: bool = False,
    is_selected: bool = True,
) -> LandedCall:
    """Return a landed call from a row of a statement."""
    return LandedCall(
        seq,
        load_xid,
        source,
        message_id,
        _short_time(received_at),
        timestamp and _short_time(timestamp),
        payload.encode(),
        is_repeated,
        is_selected,
    )


def read_tracks_of(source: str, statement: str) -> sql.Composed:
    """Return a statement on `iterable.tracks` as a statement on the table tracks of another source."""
    before, *after = (sql.SQL(part) for part in statement.split("iterable.tracks"))
    table = sql.Identifier(source, "tracks")
    return sql.Composed([before, *(each for part in after for each in (table, part))])


def _short_time(text: str) -> str:
    """Return a time with milliseconds if it has no microseconds, as Segment writes times."""
    return f"{text[:-4]}Z" if text.endswith("000Z") else text
