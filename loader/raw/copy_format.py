"""Events as rows of COPY's binary format, which is how they get into raw.events; a few at a time, as arrays.

Binary, because the server then takes a payload as it is instead of looking at each byte for what text format escapes: a
tenth of its work. https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from typing import LiteralString

from loader.events.model import Event
from loader.postgres.statements import read_statement

# Events that bring no time of their own get the column's default.
_COPY: LiteralString = "copy raw.events (source, collection, message_id, payload) from stdin (format binary)"
_COPY_RECEIVED: LiteralString = (
    "copy raw.events (source, collection, received_at, message_id, payload) from stdin (format binary)"
)

# Of rows that all have a time.
COPY = _COPY_RECEIVED.encode()

# Of a few rows, as arrays. COPY makes the server ask for them first, which takes a collector a turn of its event loop;
# above `FEW` events, the server has less work with COPY all the same. In the list of a select, arrays of one length
# are read side by side; in its `from`, they would be written to a table of the executor's first.
INSERT = read_statement(__file__, "insert").encode()
FEW = 50

# What stands before and after the rows.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"

_LENGTH = Struct(">i").pack
_TIME_AND_LENGTH = Struct(">qi").pack
_LENGTH_AND_VERSION = Struct(">iB").pack
_JSONB_VERSION = 1
# An array of one dimension that may hold nulls: the type of its elements, their number, the number of the first.
_ARRAY = Struct(">iiIii").pack
_TIME = Struct(">iq").pack
_NULL = _LENGTH(-1)
# The types' numbers, as pg_type has them.
_TEXT, _TIMESTAMPTZ, _JSONB = 25, 1184, 3802
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
    # Events that came together have one time: it is worked out once.
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
    """Return events as the arguments of `INSERT`, in binary.

    Args:
        by_source: The events, by the schema name of their source.
        now: The transaction's time, for those that bring none.
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
