"""Brings what waits in the spool into the database, once the database is back, in the order in which it came.

How far a segment has been drained is written in the transaction of its rows, so nothing lands twice, whenever either
side is killed.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import psycopg
import structlog

from loader.buffer.spool import Part, Spool
from loader.errors import LoaderError, without_values
from loader.postgres.connection import cut, time_limit
from loader.postgres.warehouse import Warehouse
from loader.raw.batches import land_parts
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import LandingResult
from loader.runtime import metrics
from loader.runtime.backoff import Backoff

# What one transaction takes at most: beyond this, a larger one is not faster.
BATCH_BYTES = 4_000_000

# What the database may take for a part of the spool, for which nobody waits.
_PART_SECONDS = 60.0

# Between attempts to reach a database that is away.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

_SPOOLS = "select segment, byte_offset from raw.spools"
_ADVANCE = """
    insert into raw.spools (segment, byte_offset) values (%(segment)s, %(end)s)
    on conflict (segment) do update set byte_offset = excluded.byte_offset, updated_at = now()
    where spools.byte_offset = %(offset)s
"""
# A segment that is drained is deleted, so what nothing has moved for long is none any more.
_FORGET = "delete from raw.spools where updated_at < now() - interval '1 year'"

# What says that the database could not do it, as opposed to a mistake of ours.
AWAY = (psycopg.Error, LoaderError, OSError)

log = structlog.get_logger("loader")


class SpoolReplay:
    """Drains a spool until it is empty.

    Args:
        connect: Opens a connection to the database, in autocommit; raises what it likes when it cannot.
        spool: The spool.
        warehouse: The warehouse the database is; read again before anything is drained into it.
        mode: Held while it is decided whether deliveries go to the spool.
        seconds: How long the database may take while somebody waits for it.
        emptied: Called with a connection and what is known of the events, holding `mode`, when the spool is empty.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        spool: Spool,
        warehouse: Warehouse,
        *,
        mode: threading.RLock,
        seconds: float,
        emptied: Callable[[psycopg.Connection, SchemaRegistry], None],
    ) -> None:
        self._connect = connect
        self._spool = spool
        self._warehouse = warehouse
        self._mode = mode
        self._seconds = seconds
        self._emptied = emptied
        self._stopping = threading.Event()
        self._connection: psycopg.Connection | None = None

    def stop(self) -> None:
        """Stop soon, from another thread; the next process learns from the database what of the last part landed."""
        self._stopping.set()
        if connection := self._connection:
            cut(connection)

    def run(self) -> None:
        """Bring the database back, and the spool into it; try until it is done, or to be stopped."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        told = ""
        while not self._stopping.is_set():
            try:
                self._connection = self._connect()
                try:
                    if self._drain(self._connection):
                        return
                except BaseException:
                    self._disconnect()
                    raise
            except AWAY as error:
                reason = describe(error)
                if reason != told and not self._stopping.is_set():
                    log.warning("the spool cannot be drained yet", reason=reason)
                    told = reason
                self._stopping.wait(backoff.fail())
            except Exception:
                log.exception("the spool could not be drained; trying again")
                self._stopping.wait(_LONGEST_PAUSE)
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection:
            with suppress(psycopg.Error, OSError):
                self._connection.close()
            self._connection = None

    def _drain(self, connection: psycopg.Connection) -> bool:
        """Land what is in the spool, part by part; False when it was interrupted by the end of the process."""
        with time_limit(connection, self._seconds):
            connection.execute(_FORGET)
            positions: dict[str, int] = dict(connection.execute(_SPOOLS).fetchall())
            here = self._warehouse.identify(connection)
        with self._mode:
            self._spool.adopt(here)
            # Also for what this process has drained itself: it may not know whether its last part has landed.
            self._spool.resume(positions)
        registry = SchemaRegistry()
        drained = 0
        proven = False
        while not self._stopping.is_set():
            with self._mode:
                part = self._spool.next_part(BATCH_BYTES)
                if part and part.last and proven:
                    # More may come while it lands, and under load that would never end. The database has just shown
                    # that it takes parts, so the writing thread can wait for this one.
                    drained += self._land(connection, registry, part, self._seconds)
                    part = self._spool.next_part(BATCH_BYTES)
                if part is None:
                    self._emptied(connection, registry)
                    # It is the other's now.
                    self._connection = None
                    metrics.spool_bytes.set(0)
                    log.info("events go to the database", drained=drained)
                    return True
            drained += self._land(connection, registry, part, _PART_SECONDS)
            proven = True
        return False

    def _land(self, connection: psycopg.Connection, registry: SchemaRegistry, part: Part, seconds: float) -> int:
        """Land a part of the spool and remember that, in one transaction; return how many events it had."""
        started = time.monotonic()
        with time_limit(connection, seconds):
            landed = _land_part(connection, registry, part, self._warehouse)
        count_landed(landed, time.monotonic() - started)
        with self._mode:
            self._spool.drained(part)
            metrics.spool_bytes.set(self._spool.size)
        return landed.rows


def land_segment(connection: psycopg.Connection, folder: Path, name: str) -> LandingResult:
    """Land one segment of a spool, whatever warehouse it belongs to, and delete it.

    Args:
        connection: A connection in autocommit.
        folder: The spool's folder.
        name: The segment's name.

    Raises:
        SpoolError: There is no such segment, or a process holds it.
        LoaderError: It holds events of a source that this database does not have; what came before them has landed.
    """
    warehouse = Warehouse()
    warehouse.identify(connection)
    spool = Spool(folder, 0)
    registry = SchemaRegistry()
    total = LandingResult()
    try:
        spool.take(name)
        spool.resume(dict(connection.execute(_SPOOLS).fetchall()))
        sources = {schema for (schema,) in connection.execute("select schema_name from raw.sources")}
        while part := spool.next_part(BATCH_BYTES):
            if missing := {delivery.source for delivery in part.deliveries} - sources:
                raise LoaderError(
                    f"Segment {name} holds events of a source with the schema {min(missing)}, which this database does "
                    f"not have. Run `loader source add NAME --schema {min(missing)}`, then this command again."
                )
            total.add(_land_part(connection, registry, part, warehouse))
            spool.drained(part)
    finally:
        spool.close()
    return total


def _land_part(
    connection: psycopg.Connection, registry: SchemaRegistry, part: Part, warehouse: Warehouse
) -> LandingResult:
    """Land a part of a spool and remember that, in one transaction."""
    deliveries = [
        each if each.is_corrected else msgspec.structs.replace(each, received_at=warehouse.correct(each.received_at))
        for each in part.deliveries
    ]
    with registry.transaction(connection) as changes:
        landed = land_parts(connection, deliveries, changes)
        moved = connection.execute(_ADVANCE, {"segment": part.segment, "offset": part.offset, "end": part.end})
        if moved.rowcount != 1:
            raise LoaderError(f"Segment {part.segment} is being drained by somebody else.")
    return landed


def describe(error: BaseException) -> str:
    """Return an error in one line, with its SQLSTATE; none of a row's content is in it."""
    if isinstance(error, psycopg.Error):
        message = error.diag.message_primary or type(error).__name__
        return f"{error.sqlstate or 'connection lost'}: {without_values(message)}"
    return without_values(error)


def count_landed(landed: LandingResult, seconds: float) -> None:
    """Count what a transaction has landed, for the metrics."""
    metrics.landed_events.inc(landed.rows)
    metrics.batch_events.observe(landed.rows)
    metrics.commit_seconds.observe(seconds)
    for reason, number in landed.reasons.items():
        metrics.quarantined.labels(reason).inc(number)
    if landed.quarantined > landed.repaired:
        metrics.refusals.add(messages=landed.quarantined - landed.repaired)
