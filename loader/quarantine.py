"""The quarantine: messages that could not land, with their original bytes, and the way back in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row

from loader.catalog import Tracker
from loader.entrances import parse_message
from loader.errors import UsageError
from loader.events import Event, Refused
from loader.landing import Landed, explain, land


@dataclass(frozen=True)
class Message:
    """A message in quarantine."""

    id: int
    source: str
    entrance: str
    reason: str
    detail: str
    payload: bytes
    path: str | None
    byte_offset: int | None
    received_at: datetime
    resolution: str | None


_COLUMNS = "id, source, entrance, reason, detail, payload, path, byte_offset, received_at, resolution"


def list_messages(
    connection: psycopg.Connection, *, reason: str | None = None, resolved: bool = False, limit: int = 50
) -> list[Message]:
    """Return messages in quarantine, the newest first.

    Args:
        connection: An open connection.
        reason: Only those with this reason code.
        resolved: Also those that have landed since.
        limit: At most so many.
    """
    with connection.cursor(row_factory=class_row(Message)) as cursor:
        return cursor.execute(
            f"""
            select {_COLUMNS}
            from raw.quarantine
            where (%(resolved)s or resolved_at is null) and (%(reason)s::text is null or reason = %(reason)s)
            order by id desc
            limit %(limit)s
            """,  # noqa: S608 - a constant list of columns
            {"resolved": resolved, "reason": reason, "limit": limit},
        ).fetchall()


def find_message(connection: psycopg.Connection, number: int) -> Message:
    """Return one message.

    Raises:
        UsageError: There is none of this number.
    """
    with connection.cursor(row_factory=class_row(Message)) as cursor:
        found = cursor.execute(
            f"select {_COLUMNS} from raw.quarantine where id = %s",  # noqa: S608 - a constant list of columns
            (number,),
        ).fetchone()
    if found is None:
        raise UsageError(f"There is no message {number} in quarantine. `loader quarantine list` shows them.")
    return found


def open_messages(connection: psycopg.Connection, reason: str | None = None) -> list[int]:
    """Return the numbers of all messages that have not landed yet, the oldest first."""
    rows = connection.execute(
        "select id from raw.quarantine"
        " where resolved_at is null and (%(reason)s::text is null or reason = %(reason)s) order by id",
        {"reason": reason},
    ).fetchall()
    return [row[0] for row in rows]


def retry(
    connection: psycopg.Connection, numbers: Sequence[int], replacement: bytes | None = None
) -> tuple[Landed, list[tuple[int, str]]]:
    """Try to land messages again, each in a transaction of its own.

    Args:
        connection: A connection in autocommit.
        numbers: Which messages.
        replacement: A corrected message to land in the place of the only one named.

    Returns:
        What landed, and the number and reason of each that is still refused; those stay as they are.

    Raises:
        UsageError: There is no such message, or it has landed already.
        DatabaseError: The database cannot take events.
    """
    total = Landed()
    still: list[tuple[int, str]] = []
    chosen = list(dict.fromkeys(numbers))
    _refuse_landed(connection, chosen)
    tracker = Tracker()
    for number in chosen:
        message = find_message(connection, number)
        payload = message.payload if replacement is None else replacement
        parsed = parse_message(message.entrance, payload.rstrip(b"\n"), message.byte_offset or 0)
        refusals = [m for m in parsed if isinstance(m, Refused) and not m.repaired]
        events = [m for m in parsed if isinstance(m, Event)]
        if refusals or not events:
            still.append((number, f"{refusals[0].reason}: {refusals[0].detail}" if refusals else "it is empty"))
            continue
        try:
            with tracker.transaction(connection) as seen:
                resolved = connection.execute(
                    "update raw.quarantine set resolved_at = now(), resolution = %s"
                    " where id = %s and resolved_at is null",
                    ("retried" if replacement is None else "replaced", number),
                )
                if not resolved.rowcount:
                    continue  # somebody else landed it meanwhile
                landed = land(connection, message.source, message.entrance, events, seen, path=message.path)
                if landed.quarantined:
                    still.append((number, "the database refuses it as before"))
                    raise psycopg.Rollback
                total.add(landed)
        except psycopg.Error as error:
            raise explain(error) from None
    return total, still


def _refuse_landed(connection: psycopg.Connection, numbers: Sequence[int]) -> None:
    """Refuse all when one is not there or has landed already, before anything is done."""
    rows = connection.execute("select id, resolution from raw.quarantine where id = any(%s)", (list(numbers),))
    resolutions: dict[int, str | None] = dict(rows.fetchall())
    for number in numbers:
        if number not in resolutions:
            raise UsageError(f"There is no message {number} in quarantine. `loader quarantine list` shows them.")
        if resolutions[number]:
            raise UsageError(f"Message {number} has landed already ({resolutions[number]}).")
