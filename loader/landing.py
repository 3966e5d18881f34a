"""Writes events into raw.events, and what cannot be an event into raw.quarantine.

One COPY carries many events. When the database refuses one of them, it is asked which ones, and what it cannot say is
halved until the culprit stands alone. That goes to quarantine with the database's own reason: a bad row costs its
neighbours nothing but time. Nothing here commits: the caller's transaction also holds what it says about the file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from struct import Struct

import msgspec
import psycopg

from loader.catalog import Seen, Tracker
from loader.entrances import parse_chunk
from loader.errors import DatabaseError
from loader.events import Delivery, Event, Reason, Refused
from loader.files import printable
from loader.lines import Chunk, read_chunk

# SQLSTATE classes and codes that blame the row: data exception, integrity violation, and a value larger than the server
# can hold or nested deeper than its stack. Everything else (a lost connection, a full disk, a lock) is the database's
# trouble, never the row's.
_ROW_CLASSES = ("22", "23")
_ROW_CODES = frozenset({"54000", "54001"})

# Events handed to the driver at a time, so that the server parses while the next ones are made ready.
_BLOCK = 256

# Binary, because the server then takes a payload as it is instead of looking at each byte for what text format escapes:
# a tenth of its work. Events that bring no time of their own get the column's default.
# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
_COPY = "copy raw.events (source, collection, message_id, payload) from stdin (format binary)"
_COPY_RECEIVED = "copy raw.events (source, collection, received_at, message_id, payload) from stdin (format binary)"
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_LENGTH = Struct(">i").pack
_TIME_AND_LENGTH = Struct(">qi").pack
_LENGTH_AND_VERSION = Struct(">iB").pack
_JSONB_VERSION = 1
# What PostgreSQL counts times from, and in.
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_QUARANTINE = """
    insert into raw.quarantine
        (source, entrance, reason, detail, payload, path, byte_offset, resolved_at, resolution)
    values
        (%(source)s, %(entrance)s, %(reason)s, %(detail)s, %(payload)s, %(path)s, %(offset)s,
         case when %(repaired)s then now() end, case when %(repaired)s then 'repaired' end)
"""

_INVALID = """
    select number::int - 1, sql_error_code, message, detail
    from unnest(%s::text[]) with ordinality as given (payload, number), pg_input_error_info(payload, 'jsonb')
    where sql_error_code is not null
"""


@dataclass
class Landed:
    """What became of some messages.

    Attributes:
        rows: Events that landed.
        reasons: Messages in quarantine, by reason; those that landed repaired are counted here too.
        repaired: How many of the messages in quarantine landed all the same.
    """

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    repaired: int = 0

    @property
    def quarantined(self) -> int:
        """Messages put in quarantine."""
        return self.reasons.total()

    def add(self, other: "Landed") -> None:
        """Add what became of others."""
        self.rows += other.rows
        self.reasons.update(other.reasons)
        self.repaired += other.repaired


def land_chunk(
    connection: psycopg.Connection, source: str, entrance: str, chunk: Chunk, seen: Seen | None, *, path: str
) -> Landed:
    """Land the lines of a file's chunk in the connection's transaction.

    Args:
        connection: An open connection; the caller commits.
        source: The schema name of the source.
        entrance: Where the file came in, which says how to read it.
        chunk: Whole lines.
        seen: Takes note of what the events are made of.
        path: The file they lie in.

    Raises:
        FileError: The file cannot be read any more.
        psycopg.Error: The database cannot take anything at the moment; nothing is to be committed.
    """
    data = read_chunk(path, chunk)
    if chunk.truncated:
        total = len(data) + chunk.truncated
        detail = f"{total} bytes without a newline; the first {len(data)} are kept here"
        return land(
            connection, source, entrance, [Refused(data, chunk.offset, Reason.LINE_TOO_LONG, detail)], seen, path=path
        )
    return land(connection, source, entrance, parse_chunk(entrance, data, chunk.offset), seen, path=path)


def land_deliveries(connection: psycopg.Connection, tracker: Tracker, deliveries: Sequence[Delivery]) -> Landed:
    """Land what several senders have sent, in a transaction of its own.

    Args:
        connection: A connection in autocommit.
        tracker: What is known of the events so far.
        deliveries: Their messages.

    Raises:
        psycopg.Error: The database cannot take anything at the moment, or nobody knows whether it has.
    """
    if not any(delivery.refused for delivery in deliveries):
        by_source: dict[str, list[Event]] = {}
        for delivery in deliveries:
            by_source.setdefault(delivery.source, []).extend(delivery.events)
        now = deliveries[-1].received_at if deliveries else None
        try:
            if (rows := _land_usual(connection, tracker, by_source, now)) is not None:
                return Landed(rows)
        except psycopg.Error as error:
            if not blames_row(error):
                raise
    with tracker.transaction(connection) as seen:
        return land_parts(connection, deliveries, seen)


def land_parts(connection: psycopg.Connection, deliveries: Iterable[Delivery], seen: Seen) -> Landed:
    """Land what several senders have sent, in the connection's transaction.

    Args:
        connection: An open connection; the caller commits.
        deliveries: Their messages.
        seen: Takes note of what the events that land are made of.

    Raises:
        psycopg.Error: The database cannot take anything at the moment; nothing is to be committed.
    """
    parts: dict[tuple[str, str], list[Event | Refused]] = {}
    numbers: dict[tuple[int, int], int] = {}
    for index, delivery in enumerate(deliveries):
        part = parts.setdefault((delivery.source, delivery.entrance), [])
        messages: list[Event | Refused] = [*delivery.events, *delivery.refused]
        for message in messages:
            number = numbers.setdefault((index, message.offset), len(numbers))
            part.append(msgspec.structs.replace(message, offset=number))
    total = Landed()
    for (source, entrance), messages in parts.items():
        total.add(land(connection, source, entrance, messages, seen))
    return total


def _land_usual(
    connection: psycopg.Connection, tracker: Tracker, by_source: dict[str, list[Event]], now: datetime | None
) -> int | None:
    """Land events by one COPY that is its own transaction, if it is all there is to do for them.

    Returns:
        How many; None when there is more to do, and nothing was done.
    """
    seen = Seen(tracker, connection)
    received = False
    for source, events in by_source.items():
        events.sort(key=_partition)
        seen.prepare(source, events)
        if seen.unusual(source, events):
            return None
        received = received or any(event.received_at for event in events)
    if not any(by_source.values()):
        return 0
    with connection.cursor() as cursor, cursor.copy(_COPY_RECEIVED if received else _COPY) as copy:
        blocks = [_block(source, events, now if received else None) for source, events in by_source.items()]
        copy.write(b"".join([_HEADER, *blocks, _END]))
    return sum(map(len, by_source.values()))


def land(
    connection: psycopg.Connection,
    source: str,
    entrance: str,
    messages: Iterable[Event | Refused],
    seen: Seen | None,
    *,
    path: str | None = None,
) -> Landed:
    """Land messages in the connection's transaction.

    Args:
        connection: An open connection; the caller commits.
        source: The schema name of the source.
        entrance: Where they came in, for the quarantine.
        messages: Events for raw.events, refusals for raw.quarantine.
        seen: Takes note of what the events that land are made of; None when nobody is to know.
        path: The file they came from, for the quarantine.

    Raises:
        psycopg.Error: The database cannot take anything at the moment; nothing is to be committed.
    """
    events: list[Event] = []
    refused: list[Refused] = []
    for message in messages:
        if type(message) is Event:
            events.append(message)
        else:
            refused.append(message)  # type: ignore[arg-type]
    # The server writes a partition's rows many at a time only when they come one after the other. Events of one
    # collection stay in their order.
    events.sort(key=_partition)
    with connection.cursor() as cursor:
        culprits: list[Refused] = []
        now = None
        if any(event.received_at for event in events):
            row = cursor.execute("select now()").fetchone()
            now = row[0] if row else None
        unusual: list[Event] = []
        if seen:
            seen.prepare(source, events)
            _copy(
                cursor,
                source,
                events,
                now,
                culprits,
                meanwhile=lambda block: unusual.extend(seen.unusual(source, block)),
            )
            blamed = {culprit.offset for culprit in culprits}
            seen.look(source, [event for event in events if event.offset not in blamed] if blamed else unusual)
        else:
            _copy(cursor, source, events, now, culprits)
        refused = _settle(refused, culprits)
        if refused:
            cursor.executemany(
                _QUARANTINE,
                [
                    {
                        "source": source,
                        "entrance": entrance,
                        "reason": r.reason.value,
                        "detail": r.detail,
                        "payload": r.payload,
                        "path": None if path is None else printable(path),
                        "offset": None if path is None else r.offset,
                        "repaired": r.repaired,
                    }
                    for r in refused
                ],
            )
    return Landed(
        rows=len(events) - len(culprits),
        reasons=Counter(r.reason.value for r in refused),
        repaired=sum(r.repaired for r in refused),
    )


def _settle(refused: list[Refused], culprits: list[Refused]) -> list[Refused]:
    """Add what the database refused to what was refused before; nothing is repaired that did not land after all."""
    if not culprits:
        return refused
    originals = {r.offset: r.payload for r in refused if r.repaired}
    blamed = {r.offset for r in culprits}
    kept = [r for r in refused if not (r.repaired and r.offset in blamed)]
    return kept + [msgspec.structs.replace(r, payload=originals.get(r.offset, r.payload)) for r in culprits]


def _partition(event: Event) -> str:
    return event.collection or ""


def _copy(
    cursor: psycopg.Cursor,
    source: str,
    events: Sequence[Event],
    now: datetime | None,
    refused: list[Refused],
    *,
    meanwhile: Callable[[Sequence[Event]], None] = lambda _: None,
) -> None:
    """Copy events; of those the database refuses, ask it for the culprits, and halve the rest until they are known.

    `meanwhile` gets each block that was handed over, while the server is busy with it.
    """
    if not events:
        return
    try:
        with cursor.connection.transaction(), cursor.copy(_COPY if now is None else _COPY_RECEIVED) as copy:
            copy.write(_HEADER)
            for start in range(0, len(events), _BLOCK):
                block = events[start : start + _BLOCK]
                copy.write(_block(source, block, now))
                meanwhile(block)
            copy.write(_END)
    except psycopg.Error as error:
        if not blames_row(error):
            raise
        if len(events) == 1:
            diag = error.diag
            refused.append(_refuse(events[0], error.sqlstate, diag.message_primary or error, diag.message_detail))
            return
        if culprits := _invalid(cursor, events):
            refused += culprits.values()
            _copy(cursor, source, [e for place, e in enumerate(events) if place not in culprits], now, refused)
            return
        middle = len(events) // 2
        _copy(cursor, source, events[:middle], now, refused)
        _copy(cursor, source, events[middle:], now, refused)


def _invalid(cursor: psycopg.Cursor, events: Sequence[Event]) -> dict[int, Refused]:
    """Return by their places the events whose payloads are no jsonb; where all are bad, halving would take minutes."""
    try:
        with cursor.connection.transaction():
            rows = cursor.execute(_INVALID, ([event.payload.decode() for event in events],)).fetchall()
    except psycopg.Error as error:
        if blames_row(error):  # some payloads end even this, e.g. one nested deeper than the server's stack
            return {}
        raise
    return {place: _refuse(events[place], *info) for place, *info in rows}


def _refuse(event: Event, state: object, message: object, detail: object) -> Refused:
    told = f"{state}: {message} ({detail})" if detail else f"{state}: {message}"
    return Refused(event.payload, event.offset, Reason.REFUSED_BY_DATABASE, told)


def blames_row(error: psycopg.Error) -> bool:
    """Say whether an error of the database is about the row it was given, so that another row may pass."""
    state = error.sqlstate or ""
    return state.startswith(_ROW_CLASSES) or state in _ROW_CODES


def explain(error: psycopg.Error) -> DatabaseError:
    """Return an error of the database as one a person can act on."""
    state = error.sqlstate or ""
    message = " ".join((error.diag.message_primary or str(error)).split())
    if state == "53100":
        advice = "The database's disk is full. Make room, then run the command again: it goes on where it stopped."
    elif state.startswith(("08", "57")) or not state:
        advice = "The connection was lost. Run the command again: it goes on where it stopped."
    elif state.startswith("42"):
        advice = "Check that the role may write to the raw schema, and that `loader migrate` has run."
    else:
        advice = "Run the command again: it goes on where it stopped."
    return DatabaseError(f"The database refused ({state or 'no answer'}): {message}. {advice}")


def _block(source: str, events: Sequence[Event], now: datetime | None) -> bytes:
    """Return events as rows of COPY's binary format.

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
