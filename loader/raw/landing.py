"""Writes events into raw.events, and refused messages into raw.quarantine.

One COPY carries many events. If the database refuses the COPY, a query finds the invalid events. If the query finds
none, the events are copied in halves until each refused event is alone. A refused event goes to quarantine with the
database's reason, and the other events still land, only later. This module never commits, because the caller also
records the progress of a file in the same transaction.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import psycopg

from loader.errors import DatabaseError, without_values
from loader.events.formats import sent_message
from loader.events.model import Event, Reason, Refused
from loader.postgres.statements import read_statement
from loader.raw.catalog import PendingChanges
from loader.raw.copy_format import END, HEADER, copy_statement, partition, rows_of
from loader.runtime.terminal import shorten

# SQLSTATE classes and codes of errors that a row causes: data exception, integrity violation, and a value that is too
# large for the server or nested too deep for its stack. All other errors (a lost connection, a full disk, a lock) come
# from the database, never from the row.
_ROW_CLASSES = ("22", "23")
_ROW_CODES = frozenset({"54000", "54001"})

# Number of events in one block for the driver. The server parses a block while the next block is prepared.
_BLOCK = 256

# Largest number of characters of a detail in raw.quarantine. A detail may quote a long value, and the quarantine has
# the whole message too.
_DETAIL_CHARACTERS = 1000

_QUARANTINE = read_statement(__file__, "quarantine")

_INVALID = read_statement(__file__, "invalid")


@dataclass
class LandingResult:
    """The numbers of landed and refused messages.

    Attributes:
        rows: Number of landed events.
        reasons: Number of messages in quarantine, by reason. Messages that landed with replaced characters count too.
        repaired: Number of messages in quarantine that landed with replaced characters.
    """

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    repaired: int = 0

    @property
    def quarantined(self) -> int:
        """Number of messages in quarantine."""
        return self.reasons.total()

    def add(self, other: "LandingResult") -> None:
        """Add the numbers of another result."""
        self.rows += other.rows
        self.reasons.update(other.reasons)
        self.repaired += other.repaired


def land(
    connection: psycopg.Connection,
    source: str,
    entrance: str,
    messages: Iterable[Event | Refused],
    changes: PendingChanges | None,
    *,
    path: str | None = None,
    times: Mapping[int, datetime] | None = None,
) -> LandingResult:
    """Land messages in the connection's transaction.

    Args:
        connection: An open connection; the caller commits.
        source: The schema name of the source.
        entrance: The entrance of the messages, for the quarantine.
        messages: Events for raw.events, and refusals for raw.quarantine.
        changes: Records the properties of landed events; None disables recording.
        path: The file of the messages, for the quarantine, as text that PostgreSQL accepts.
        times: The times of receipt by offset, for the quarantine. Messages without an entry are received now.

    Raises:
        psycopg.Error: The database cannot land anything at the moment, and the caller must not commit.
    """
    events: list[Event] = []
    refused: list[Refused] = []
    for message in messages:
        if type(message) is Event:
            events.append(message)
        else:
            refused.append(message)  # type: ignore[arg-type]
    # The sort is stable, so events of one collection stay in their order.
    events.sort(key=partition)
    with connection.cursor() as cursor:
        culprits: list[Refused] = []
        now = None
        if times:
            # Every event has its own time in this case.
            now = next(iter(times.values()))
        elif any(event.received_at for event in events):
            row = cursor.execute("select now()").fetchone()
            now = row[0] if row else None
        unknown: list[Event] = []
        if changes:
            changes.prepare(source, events)
            _copy(
                cursor,
                source,
                events,
                now,
                culprits,
                meanwhile=lambda block: unknown.extend(changes.unknown_events(source, block)),
            )
            blamed = {culprit.offset for culprit in culprits}
            changes.record_fields(
                source, [event for event in events if event.offset not in blamed] if blamed else unknown
            )
        else:
            _copy(cursor, source, events, now, culprits)
        refused = _merge_refusals(entrance, refused, culprits)
        if refused:
            cursor.executemany(
                _QUARANTINE,
                [
                    {
                        "source": source,
                        "entrance": entrance,
                        "reason": r.reason.value,
                        "detail": shorten(r.detail, _DETAIL_CHARACTERS),
                        "payload": r.payload,
                        "path": path,
                        "offset": None if path is None else r.offset,
                        "repaired": r.repaired,
                        "received_at": times.get(r.offset) if times else None,
                    }
                    for r in refused
                ],
            )
    return LandingResult(
        rows=len(events) - len(culprits),
        reasons=Counter(r.reason.value for r in refused),
        repaired=sum(r.repaired for r in refused),
    )


def _merge_refusals(entrance: str, refused: list[Refused], culprits: list[Refused]) -> list[Refused]:
    """Add the refusals of the database to the earlier refusals.

    A refusal of the database gets the bytes of the sender in place of the event's payload. An event with replaced
    characters that the database refuses has not landed, so its earlier refusal is left out.
    """
    if not culprits:
        return refused
    originals = {r.offset: r.payload for r in refused if r.repaired}
    blamed = {r.offset for r in culprits}
    kept = [r for r in refused if not (r.repaired and r.offset in blamed)]
    return kept + [
        msgspec.structs.replace(r, payload=originals.get(r.offset) or sent_message(entrance, r.payload))
        for r in culprits
    ]


def _copy(
    cursor: psycopg.Cursor,
    source: str,
    events: Sequence[Event],
    now: datetime | None,
    refused: list[Refused],
    *,
    meanwhile: Callable[[Sequence[Event]], None] = lambda _: None,
) -> None:
    """Copy events, and find the events that the database refuses.

    Args:
        cursor: A cursor in the caller's transaction.
        source: The schema name of the source.
        events: The events to copy.
        now: The time of the transaction, as for `rows_of`.
        refused: The list to which the refused events are added.
        meanwhile: Called with each block after the driver has got the block, while the server reads the block.
    """
    if not events:
        return
    try:
        with cursor.connection.transaction(), cursor.copy(copy_statement(now)) as copy:
            copy.write(HEADER)
            for start in range(0, len(events), _BLOCK):
                block = events[start : start + _BLOCK]
                copy.write(rows_of(source, block, now))
                meanwhile(block)
            copy.write(END)
    except psycopg.Error as error:
        if not blames_row(error):
            raise
        if len(events) == 1:
            refused.append(_refuse(events[0], error.sqlstate, error.diag.message_primary or error))
            return
        if culprits := _invalid(cursor, events):
            refused += culprits.values()
            _copy(cursor, source, [e for place, e in enumerate(events) if place not in culprits], now, refused)
            return
        middle = len(events) // 2
        _copy(cursor, source, events[:middle], now, refused)
        _copy(cursor, source, events[middle:], now, refused)


def _invalid(cursor: psycopg.Cursor, events: Sequence[Event]) -> dict[int, Refused]:
    """Return the refusals of events whose payloads are not valid jsonb, by the events' positions.

    One query finds all such events. If all events are invalid, copying in halves would take minutes.
    """
    try:
        with cursor.connection.transaction():
            rows = cursor.execute(_INVALID, {"payloads": [event.payload.decode() for event in events]}).fetchall()
    except psycopg.Error as error:
        if blames_row(error):  # a payload can also fail this query, e.g. if it is nested deeper than the server's stack
            return {}
        raise
    return {place: _refuse(events[place], *info) for place, *info in rows}


def _refuse(event: Event, state: object, message: object) -> Refused:
    told = f"{state}: {without_values(message)}"
    return Refused(event.payload, event.offset, Reason.REFUSED_BY_DATABASE, told)


def blames_row(error: psycopg.Error) -> bool:
    """Return whether a row caused an error of the database, so that other rows may still land."""
    state = error.sqlstate or ""
    return state.startswith(_ROW_CLASSES) or state in _ROW_CODES


def explain(error: psycopg.Error) -> DatabaseError:
    """Convert an error of the database to an error with advice for a person."""
    state = error.sqlstate or ""
    message = without_values(error.diag.message_primary or error)
    if state == "53100":
        advice = (
            "The database's disk is full. Make room, then run the command again: it continues after the last commit."
        )
    elif state.startswith(("08", "57")) or not state:
        advice = "The connection was lost. Run the command again: it continues after the last commit."
    elif state.startswith("42"):
        advice = "Check that the role may write to the raw schema, and that `loader migrate` has run."
    else:
        advice = "Run the command again: it continues after the last commit."
    return DatabaseError(f"The database refused ({state or 'no answer'}): {message}. {advice}")
