"""Keeps the events that a destination did not accept, and reads them again from raw.events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import dict_row

from loader.postgres.statements import read_statement
from loader.raw.delivery_windows import DeadLetter, LandedCall, landed_call, read_tracks_of

_LIST = read_statement(__file__, "list")
_DUE_SOURCES = """
    select distinct source from raw.dead_letters
    where destination_id = %s and next_try_at <= clock_timestamp() + make_interval(secs => %s)
    order by source
"""
_DUE = read_statement(__file__, "due")
_LATER_UPDATES = read_statement(__file__, "later_updates")
_SHOW = read_statement(__file__, "show")
_RETRY = """
    update raw.dead_letters set next_try_at = clock_timestamp()
    where destination_id = %(destination)s and (%(reason)s::text is null or reason = %(reason)s)
"""
_DROP = """
    delete from raw.dead_letters
    where destination_id = %(destination)s and (%(reason)s::text is null or reason = %(reason)s)
"""
_ACCEPT = read_statement(__file__, "accept")
_FAIL = read_statement(__file__, "fail")


@dataclass(frozen=True)
class ListedLetter:
    """A dead letter, as `loader forward dead list` shows it."""

    id: int
    source: str
    message_id: str
    event: str | None
    status: int | None
    reason: str
    attempts: int
    died_at: datetime
    next_try_at: datetime | None


@dataclass(frozen=True)
class DueLetter:
    """A dead letter to try again, with its event."""

    id: int
    attempts: int
    call: LandedCall


def list_letters(connection: psycopg.Connection, destination_id: int, limit: int) -> list[ListedLetter]:
    """Return the dead letters of a destination, the oldest first."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(_LIST, {"destination": destination_id, "most": limit})
        return [ListedLetter(**row) for row in cursor]


def show_letter(connection: psycopg.Connection, destination_id: int, number: int) -> tuple[bytes, str] | None:
    """Return the event of a dead letter as it landed, and the answer; None if there is no such letter."""
    row = connection.execute(_SHOW, {"destination": destination_id, "id": number}).fetchone()
    return (row[0].encode(), row[1]) if row else None


def retry_letters(connection: psycopg.Connection, destination_id: int, reason: str | None) -> int:
    """Let the worker try dead letters again, all or those with one reason; return their number."""
    return connection.execute(_RETRY, {"destination": destination_id, "reason": reason}).rowcount


def drop_letters(connection: psycopg.Connection, destination_id: int, reason: str | None) -> int:
    """Delete dead letters, all or those with one reason; return their number."""
    return connection.execute(_DROP, {"destination": destination_id, "reason": reason}).rowcount


def read_due_letters(
    connection: psycopg.Connection, destination_id: int, *, moved_seconds: float, limit: int = 500
) -> list[DueLetter]:
    """Return the dead letters of one source whose next try is due, in landing order.

    Args:
        connection: A connection in autocommit.
        destination_id: The destination.
        moved_seconds: Seconds by which the worker's clock is ahead of the database's; 0 outside tests.
        limit: The largest number.
    """
    for (source,) in connection.execute(_DUE_SOURCES, [destination_id, moved_seconds]).fetchall():
        statement = read_tracks_of(source, _DUE)
        rows = connection.execute(
            statement, {"destination": destination_id, "source": source, "moved": moved_seconds, "most": limit}
        ).fetchall()
        if rows:
            return [DueLetter(number, attempts, landed_call(source, *event)) for number, attempts, *event in rows]
    return []


def read_later_updates(
    connection: psycopg.Connection, destination_id: int, letters: Sequence[DueLetter]
) -> list[LandedCall]:
    """Return the later updates of the profiles that dead letters of one source update, in landing order.

    Only updates that the live delivery has passed, and that are not dead, are later updates.
    """
    source = letters[0].call.source
    rows = connection.execute(
        _LATER_UPDATES,
        {"destination": destination_id, "source": source, "ids": [letter.id for letter in letters]},
    ).fetchall()
    return [landed_call(source, *row) for row in rows]


def accept_letters(connection: psycopg.Connection, numbers: Sequence[int]) -> None:
    """Delete dead letters that the destination has accepted now, and count their events as delivered."""
    connection.execute(_ACCEPT, {"ids": list(numbers)})


def fail_letter(connection: psycopg.Connection, number: int, letter: DeadLetter) -> None:
    """Record a further try of a dead letter that failed."""
    connection.execute(
        _FAIL,
        {
            "id": number,
            "status": letter.status,
            "reason": letter.reason,
            "answer": letter.answer,
            "retry_seconds": letter.retry_seconds,
        },
    )
