"""Writes events into raw.events, and what cannot be an event into raw.quarantine.

One COPY carries many events. When the database refuses one of them, the COPY is halved until the culprit stands alone
and goes to quarantine with the database's own reason: a bad row costs its neighbours nothing but time. Nothing here
commits: the caller's transaction also holds what it says about the file.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import psycopg
from psycopg import sql

from loader.errors import DatabaseError
from loader.events import Event, Reason, Refused
from loader.files import printable
from loader.lines import Chunk, read_chunk
from loader.segment import parse_lines

# SQLSTATE classes and codes that blame the row: data exception, integrity violation, and a value larger than the server
# can hold or nested deeper than its stack. Everything else (a lost connection, a full disk, a lock) is the database's
# trouble, never the row's.
_ROW_CLASSES = ("22", "23")
_ROW_CODES = frozenset({"54000", "54001"})

# Events handed to the driver at a time, so that the server parses while the next ones are made ready.
_BLOCK = 256

_COPY = sql.SQL("copy raw.events (source, collection, message_id, received_at, payload) from stdin")
_QUARANTINE = """
    insert into raw.quarantine
        (source, entrance, reason, detail, payload, path, byte_offset, resolved_at, resolution)
    values
        (%(source)s, %(entrance)s, %(reason)s, %(detail)s, %(payload)s, %(path)s, %(offset)s,
         case when %(repaired)s then now() end, case when %(repaired)s then 'repaired' end)
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


def land_chunk(connection: psycopg.Connection, source: str, path: str, chunk: Chunk) -> Landed:
    """Land the lines of a file's chunk in the connection's transaction.

    Args:
        connection: An open connection; the caller commits.
        source: The schema name of the source.
        path: The file, for the quarantine.
        chunk: Whole lines.

    Raises:
        FileError: The file cannot be read any more.
        psycopg.Error: The database cannot take anything at the moment; nothing is to be committed.
    """
    data = read_chunk(path, chunk)
    if chunk.truncated:
        total = len(data) + chunk.truncated
        detail = f"{total} bytes without a newline; the first {len(data)} are kept here"
        return land(connection, source, "file", [Refused(data, chunk.offset, Reason.LINE_TOO_LONG, detail)], path)
    return land(connection, source, "file", parse_lines(data, chunk.offset), path)


def land(
    connection: psycopg.Connection,
    source: str,
    entrance: str,
    messages: Iterable[Event | Refused],
    path: str | None = None,
) -> Landed:
    """Land messages in the connection's transaction.

    Args:
        connection: An open connection; the caller commits.
        source: The schema name of the source.
        entrance: Where they came in, for the quarantine.
        messages: Events for raw.events, refusals for raw.quarantine.
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
        _copy(cursor, source, events, culprits)
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
                        "offset": r.offset,
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


def _copy(cursor: psycopg.Cursor, source: str, events: Sequence[Event], refused: list[Refused]) -> None:
    """Copy events, halving what the database refuses until the culprits are known."""
    if not events:
        return
    try:
        with cursor.connection.transaction(), cursor.copy(_COPY) as copy:
            for start in range(0, len(events), _BLOCK):
                copy.write(_block(source, events[start : start + _BLOCK]))
    except psycopg.Error as error:
        if not blames_row(error):
            raise
        if len(events) == 1:
            detail = f"{error.sqlstate}: {error.diag.message_primary or error}"
            if error.diag.message_detail:
                detail = f"{detail} ({error.diag.message_detail})"
            refused.append(Refused(events[0].payload, events[0].offset, Reason.REFUSED_BY_DATABASE, detail))
            return
        middle = len(events) // 2
        _copy(cursor, source, events[:middle], refused)
        _copy(cursor, source, events[middle:], refused)


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


def _block(source: str, events: Sequence[Event]) -> bytes:
    """Return events as lines of COPY's text format."""
    plain = _is_plain(b"".join([event.payload for event in events]))
    pieces: list[bytes] = []
    for event in events:
        message_id = event.message_id
        if "\\" in message_id or not message_id.isprintable():
            message_id = _escaped(message_id.encode()).decode()
        collection = r"\N" if event.collection is None else event.collection
        pieces += (
            f"{source}\t{collection}\t{message_id}\t{event.received_at or 'now'}\t".encode(),
            event.payload if plain else _escaped(event.payload),
            b"\n",
        )
    return b"".join(pieces)


def _is_plain(value: bytes) -> bool:
    """Say whether a value holds nothing that COPY's text format gives a meaning of its own."""
    return b"\\" not in value and b"\t" not in value and b"\n" not in value and b"\r" not in value


def _escaped(value: bytes) -> bytes:
    if _is_plain(value):
        return value
    return value.replace(b"\\", b"\\\\").replace(b"\t", b"\\t").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
