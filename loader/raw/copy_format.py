"""Encodes events for raw.events: as rows of COPY's binary format, or, for a few events, as binary arrays.

With the text format, the server would look for escapes in each byte of a payload. The binary format saves that, which
is a tenth of the server's work. https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from typing import LiteralString

from loader.events.model import Event

# Without a time of receipt, the events get the default of the column.
_COPY: LiteralString = "copy raw.events (source, collection, message_id, payload) from stdin (format binary)"
_COPY_RECEIVED: LiteralString = (
    "copy raw.events (source, collection, received_at, message_id, payload) from stdin (format binary)"
)

# For rows that all have a time of receipt.
COPY = _COPY_RECEIVED.encode()

# Largest number of events that go to `raw.land` as arrays. COPY needs one more round trip, but COPY costs the server
# less for more events.
FEW = 50

# The bytes before and after the rows.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"

_LENGTH = Struct(">i").pack
_TIME_AND_LENGTH = Struct(">qi").pack
_LENGTH_AND_VERSION = Struct(">iB").pack
_JSONB_VERSION = 1
# The head of a one-dimensional array: dimensions, a flag for nulls, the type and number of the elements, lower bound.
_ARRAY = Struct(">iiIii").pack
_TIME = Struct(">iq").pack
_NULL = _LENGTH(-1)
# The oids of the types in pg_type.
_TEXT, _TIMESTAMPTZ, _JSONB = 25, 1184, 3802
# PostgreSQL stores a time as the number of microseconds since this moment.
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def partition(event: Event) -> str:
    """Return the sort key that puts the events of one partition next to each other.

    The server writes several rows of a partition at once only if they follow each other.
    """
    return event.collection or ""


def copy_statement(now: datetime | None) -> LiteralString:
    """Return the COPY statement for the rows that `rows_of` returns for the same `now`."""
    return _COPY if now is None else _COPY_RECEIVED


def rows_of(source: str, events: Sequence[Event], now: datetime | None) -> bytes:
    """Return events as rows of COPY's binary format.

    The loop calls no function of this module, because the loop runs once for each event.

    Args:
        source: The schema name of the source.
        events: The events to encode.
        now: The time of the transaction, for events without a `received_at`; None for rows without that column.
    """
    beginnings = {collection: _beginning(source, collection, now) for collection in {e.collection for e in events}}
    pieces: list[bytes] = []
    # Events of one delivery have the same time, which is converted once.
    known, microseconds = None, 0
    for event in events:
        message_id = event.message_id.encode()
        payload = event.payload
        if now is not None and (received_at := event.received_at or now) is not known:
            known, microseconds = received_at, (received_at - _EPOCH) // _MICROSECOND
        pieces += (
            beginnings[event.collection],
            _LENGTH(len(message_id)) if now is None else _TIME_AND_LENGTH(microseconds, len(message_id)),
            message_id,
            _LENGTH_AND_VERSION(len(payload) + 1, _JSONB_VERSION),
            payload,
        )
    return b"".join(pieces)


def arrays_of(by_source: Mapping[str, Sequence[Event]], now: datetime) -> list[bytes]:
    """Return events as arguments of `raw.land`, in binary.

    Args:
        by_source: The events, by the schema name of their source.
        now: The time of the transaction, for events without a `received_at`.
    """
    sources: list[bytes] = []
    collections: list[bytes] = []
    times: list[bytes] = []
    ids: list[bytes] = []
    payloads: list[bytes] = []
    known, time = now, _TIME(8, (now - _EPOCH) // _MICROSECOND)
    for source, events in by_source.items():
        sources += [_text(source)] * len(events)
        for event in events:
            received_at, message_id, payload = event.received_at or now, event.message_id.encode(), event.payload
            if received_at is not known:
                known, time = received_at, _TIME(8, (received_at - _EPOCH) // _MICROSECOND)
            collections.append(_NULL if event.collection is None else _text(event.collection))
            times.append(time)
            ids += (_LENGTH(len(message_id)), message_id)
            payloads += (_LENGTH_AND_VERSION(len(payload) + 1, _JSONB_VERSION), payload)
    arrays = ((_TEXT, sources), (_TEXT, collections), (_TIMESTAMPTZ, times), (_TEXT, ids), (_JSONB, payloads))
    return [b"".join([_ARRAY(1, 1, kind, len(sources), 1), *elements]) for kind, elements in arrays]


@lru_cache(maxsize=4096)
def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH(len(encoded)) + encoded


def _beginning(source: str, collection: str | None, now: datetime | None) -> bytes:
    """Return the beginning of a row, which all events of a collection share."""
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
