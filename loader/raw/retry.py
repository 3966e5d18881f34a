"""Retries messages of the quarantine: a message that can land does so in the transaction that resolves the message."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from msgspec.structs import replace
from psycopg.rows import class_row

from loader.errors import UsageError
from loader.events.formats import parse_message
from loader.events.json_text import strip_body
from loader.events.model import Event, Refused
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import explain, land


@dataclass(frozen=True)
class Retried:
    """The result of a retry of one message.

    Attributes:
        number: The number of the message.
        landed: Number of landed calls of the message.
        refused: Number of refused calls of the message.
        why: The reason of the first refusal.
    """

    number: int
    landed: int
    refused: int
    why: str

    def __str__(self) -> str:
        if self.landed + self.refused == 1:
            return f"{self.number}: {self.why}" if self.refused else f"{self.number}: landed"
        told = f"{self.number}: {self.landed:,} of {self.landed + self.refused:,} calls landed"
        if not self.refused:
            return told
        rest = "Each refused call is now a separate message" if self.landed else "The message stays as it is"
        return f"{told}. {rest}. First refusal: {self.why}"


@dataclass(frozen=True)
class _Original:
    """The original message, with the columns of raw.quarantine that a retry needs."""

    id: int
    source: str
    entrance: str
    payload: bytes
    path: str | None
    byte_offset: int | None
    received_at: datetime


_OPEN = """
    select id from raw.quarantine
    where resolved_at is null and (%(reason)s::text is null or reason = %(reason)s)
    order by id
"""
_ORIGINAL = """
    select id, source, entrance, payload, path, byte_offset, received_at from raw.quarantine where id = %s
"""
_RESOLVE = """
    update raw.quarantine set resolved_at = now(), resolution = %s where id = %s and resolved_at is null
"""


def open_messages(connection: psycopg.Connection, reason: str | None = None) -> list[int]:
    """Return the numbers of all messages that have not landed yet, the oldest first."""
    return [number for (number,) in connection.execute(_OPEN, {"reason": reason}).fetchall()]


def retry(
    connection: psycopg.Connection, numbers: Sequence[int], replacement: bytes | None = None, warehouse_id: str = ""
) -> list[Retried]:
    """Try to land messages again, each in a transaction of its own.

    A message is read by the rules of its entrance. The body of a batch or a webhook may hold several calls. The message
    is resolved if at least one call lands, and each refused call then goes to quarantine as a message of its own.

    Args:
        connection: A connection in autocommit.
        numbers: The numbers of the messages.
        replacement: A corrected message that lands in place of the original; requires a single number.
        warehouse_id: The id of this warehouse in calls; if empty, the ids in calls do not count.

    Returns:
        The result of each message, except messages that another session has landed in the meantime. A message without
        a landed call stays in quarantine unchanged.

    Raises:
        UsageError: A message does not exist or has landed already.
        DatabaseError: The database cannot land events.
    """
    chosen = list(dict.fromkeys(numbers))
    _refuse_landed(connection, chosen)
    registry = SchemaRegistry()
    outcomes = []
    for number in chosen:
        message = _read_original(connection, number)
        if message and (outcome := _retry(connection, registry, message, replacement, warehouse_id)):
            outcomes.append(outcome)
    return outcomes


def _read_original(connection: psycopg.Connection, number: int) -> _Original | None:
    with connection.cursor(row_factory=class_row(_Original)) as cursor:
        return cursor.execute(_ORIGINAL, (number,)).fetchone()


def _retry(
    connection: psycopg.Connection,
    registry: SchemaRegistry,
    message: _Original,
    replacement: bytes | None,
    warehouse_id: str,
) -> Retried | None:
    """Try to land one message; None if another session has landed the message in the meantime."""
    payload = message.payload.rstrip(b"\n") if replacement is None else strip_body(replacement)
    offset = 1 if message.byte_offset is None else message.byte_offset
    parsed: list[Event | Refused] = []
    refused: list[Refused] = []
    for part in parse_message(message.entrance, payload, offset, warehouse_id):
        if isinstance(part, Event):
            parsed.append(replace(part, received_at=part.received_at or message.received_at))
        elif not part.repaired:
            # The refusal of a repaired event is left out, because its original is this message itself.
            parsed.append(part)
            refused.append(part)
    times = dict.fromkeys((part.offset for part in parsed), message.received_at)
    why = f"{refused[0].reason}: {refused[0].detail}" if refused else "the database refuses the message as before"
    if not parsed:
        return Retried(message.id, 0, 1, "the message is empty")
    if len(refused) == len(parsed):
        return Retried(message.id, 0, len(refused), why)
    try:
        with registry.transaction(connection) as changes:
            resolution = "retried" if replacement is None else "replaced"
            resolved = connection.execute(_RESOLVE, (resolution, message.id))
            if not resolved.rowcount:
                return None
            landed = land(connection, message.source, message.entrance, parsed, changes, path=message.path, times=times)
            if not landed.rows:
                raise psycopg.Rollback
    except psycopg.errors.LockNotAvailable:
        raise  # the command names the session that holds the lock
    except psycopg.Error as error:
        raise explain(error) from None
    return Retried(message.id, landed.rows, landed.quarantined, why)


def _refuse_landed(connection: psycopg.Connection, numbers: Sequence[int]) -> None:
    """Check, before any message lands, that all messages exist and none has landed.

    Raises:
        UsageError: A message does not exist or has landed already.
    """
    rows = connection.execute("select id, resolution from raw.quarantine where id = any(%s)", (list(numbers),))
    resolutions: dict[int, str | None] = dict(rows.fetchall())
    for number in numbers:
        if number not in resolutions:
            raise UsageError(
                f"There is no message {number} in quarantine. `loader quarantine list` shows the messages."
            )
        if resolutions[number]:
            raise UsageError(f"Message {number} has landed already ({resolutions[number]}).")
