"""Events as rows of COPY's binary format, which is how they get into raw.events.

Binary, because the server then takes a payload as it is instead of looking at each byte for what text format escapes: a
tenth of its work. https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import LiteralString

from loader.events import Event

# Events that bring no time of their own get the column's default.
_COPY: LiteralString = "copy raw.events (source, collection, message_id, payload) from stdin (format binary)"
_COPY_RECEIVED: LiteralString = (
    "copy raw.events (source, collection, received_at, message_id, payload) from stdin (format binary)"
)

# Of rows that all have a time.
COPY = _COPY_RECEIVED.encode()

# What stands before and after the rows.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"

_LENGTH = Struct(">i").pack
_TIME_AND_LENGTH = Struct(">qi").pack
_LENGTH_AND_VERSION = Struct(">iB").pack
_JSONB_VERSION = 1
# What PostgreSQL counts times from, and in.
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def partition(event: Event) -> str:
    """Return what tells which partition an event belongs to.

    The server writes a partition's rows many at a time only when they come one after the other.
    """
    return event.collection or ""


def copy_statement(now: datetime | None) -> LiteralString:
    """Return the COPY that takes what `rows_of` returns for the same `now`."""
    return _COPY if now is None else _COPY_RECEIVED


def rows_of(source: str, events: Sequence[Event], now: datetime | None) -> bytes:
    """Return events as rows.

    Written out rather than divided into functions, for it runs once for each event.

    Args:
        source: The schema name of the source.
        events: The events.
        now: The transaction's time, where the rows have a `received_at`; None where they have none.
    """
    beginnings = {collection: _beginning(source, collection, now) for collection in {e.collection for e in events}}
    pieces: list[bytes] = []
    for event in events:
        message_id = event.message_id.encode()
        payload = event.payload
        pieces += (
            beginnings[event.collection],
            _LENGTH(len(message_id))
            if now is None
            else _TIME_AND_LENGTH(((event.received_at or now) - _EPOCH) // _MICROSECOND, len(message_id)),
            message_id,
            _LENGTH_AND_VERSION(len(payload) + 1, _JSONB_VERSION),
            payload,
        )
    return b"".join(pieces)


def _beginning(source: str, collection: str | None, now: datetime | None) -> bytes:
    """Return a row up to where one event differs from the next of its collection."""
    return b"".join(
        [
            (4 if now is None else 5).to_bytes(2, "big"),
            _LENGTH(len(source.encode())),
            source.encode(),
            _LENGTH(-1 if collection is None else len(collection.encode())),
            (collection or "").encode(),
            b"" if now is None else _LENGTH(8),
        ]
    )
