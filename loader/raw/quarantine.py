"""The quarantine: lists and finds messages that could not land, with their original bytes."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, Connection, literal, select

from loader.errors import UsageError
from loader.raw.tables import fits_bigint, quarantine


@dataclass(frozen=True)
class Message:
    """A message in quarantine, with the columns of raw.quarantine."""

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


_MESSAGES = select(
    quarantine.c.id,
    quarantine.c.source,
    quarantine.c.entrance,
    quarantine.c.reason,
    quarantine.c.detail,
    quarantine.c.payload,
    quarantine.c.path,
    quarantine.c.byte_offset,
    quarantine.c.received_at,
    quarantine.c.resolution,
)


def list_messages(
    connection: Connection, *, reason: str | None = None, resolved: bool = False, limit: int = 50
) -> list[Message]:
    """Return messages in quarantine, the newest first.

    Args:
        connection: An open transaction.
        reason: Return only messages with this reason code.
        resolved: Also return messages that have landed since.
        limit: Largest number of messages.
    """
    query = _MESSAGES.order_by(quarantine.c.id.desc()).limit(literal(limit, BigInteger))
    if not resolved:
        query = query.where(quarantine.c.resolved_at.is_(None))
    if reason is not None:
        query = query.where(quarantine.c.reason == reason)
    return [Message(**row) for row in connection.execute(query).mappings()]


def find_message(connection: Connection, number: int) -> Message:
    """Return the message with a number.

    Raises:
        UsageError: There is no message with this number.
    """
    query = _MESSAGES.where(quarantine.c.id == number)
    found = connection.execute(query).mappings().first() if fits_bigint(number) else None
    if found is None:
        raise UsageError(f"There is no message {number} in quarantine. `loader quarantine list` shows the messages.")
    return Message(**found)
