"""Writes events into raw.events, and what cannot be an event into raw.quarantine.

One COPY carries many events. When the database refuses one of them, it is asked which ones, and what it cannot say is
halved until the culprit stands alone. That goes to quarantine with the database's own reason: a bad row costs its
neighbours nothing but time. Nothing here commits: the caller's transaction also holds what it says about the file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import psycopg

from loader.errors import DatabaseError, without_values
from loader.events.model import Event, Reason, Refused
from loader.postgres.statements import read_statement
from loader.raw.catalog import PendingChanges
from loader.raw.copy_format import END, HEADER, copy_statement, partition, rows_of
from loader.runtime.terminal import shorten

# SQLSTATE classes and codes that blame the row: data exception, integrity violation, and a value larger than the server
# can hold or nested deeper than its stack. Everything else (a lost connection, a full disk, a lock) is the database's
# trouble, never the row's.
_ROW_CLASSES = ("22", "23")
_ROW_CODES = frozenset({"54000", "54001"})

# Events handed to the driver at a time, so that the server parses while the next ones are made ready.
_BLOCK = 256

# Of a detail in raw.quarantine: one may quote a value, and the message itself is kept whole.
_DETAIL_CHARACTERS = 1000

_QUARANTINE = read_statement(__file__, "quarantine")

_INVALID = read_statement(__file__, "invalid")


@dataclass
class LandingResult:
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

    def add(self, other: "LandingResult") -> None:
        """Add what became of others."""
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
        entrance: Where they came in, for the quarantine.
        messages: Events for raw.events, refusals for raw.quarantine.
        changes: Records the properties of landed events; None disables recording.
        path: The file they came from, for the quarantine, as text that PostgreSQL takes.
        times: When they were received, by their offsets, for the quarantine; those not in it are received now.

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
    # Events of one collection stay in their order.
    events.sort(key=partition)
    with connection.cursor() as cursor:
        culprits: list[Refused] = []
        now = None
        if times:
            # Every event has a time then.
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
        refused = _merge_refusals(refused, culprits)
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


def _merge_refusals(refused: list[Refused], culprits: list[Refused]) -> list[Refused]:
    """Add what the database refused to what was refused before; nothing is repaired that did not land after all."""
    if not culprits:
        return refused
    originals = {r.offset: r.payload for r in refused if r.repaired}
    blamed = {r.offset for r in culprits}
    kept = [r for r in refused if not (r.repaired and r.offset in blamed)]
    return kept + [msgspec.structs.replace(r, payload=originals.get(r.offset, r.payload)) for r in culprits]


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
    """Return by their places the events whose payloads are no jsonb; where all are bad, halving would take minutes."""
    try:
        with cursor.connection.transaction():
            rows = cursor.execute(_INVALID, {"payloads": [event.payload.decode() for event in events]}).fetchall()
    except psycopg.Error as error:
        if blames_row(error):  # some payloads end even this, e.g. one nested deeper than the server's stack
            return {}
        raise
    return {place: _refuse(events[place], *info) for place, *info in rows}


def _refuse(event: Event, state: object, message: object) -> Refused:
    told = f"{state}: {without_values(message)}"
    return Refused(event.original or event.payload, event.offset, Reason.REFUSED_BY_DATABASE, told)


def blames_row(error: psycopg.Error) -> bool:
    """Say whether an error of the database is about the row it was given, so that another row may pass."""
    state = error.sqlstate or ""
    return state.startswith(_ROW_CLASSES) or state in _ROW_CODES


def explain(error: psycopg.Error) -> DatabaseError:
    """Return an error of the database as one a person can act on."""
    state = error.sqlstate or ""
    message = without_values(error.diag.message_primary or error)
    if state == "53100":
        advice = "The database's disk is full. Make room, then run the command again: it goes on where it stopped."
    elif state.startswith(("08", "57")) or not state:
        advice = "The connection was lost. Run the command again: it goes on where it stopped."
    elif state.startswith("42"):
        advice = "Check that the role may write to the raw schema, and that `loader migrate` has run."
    else:
        advice = "Run the command again: it goes on where it stopped."
    return DatabaseError(f"The database refused ({state or 'no answer'}): {message}. {advice}")
