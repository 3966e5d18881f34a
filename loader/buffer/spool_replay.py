"""Replays the spool: lands its events in their order, once the database is back.

The position up to which a segment has been replayed is written in the transaction of the rows. So no row lands twice,
even if the collector or the database is killed at any moment.
"""

import threading
import time
from collections.abc import Callable
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
from loader.raw.spools import advance, forget_old, read_positions
from loader.runtime import metrics
from loader.runtime.backoff import Backoff

# Bytes after which a transaction takes no more deliveries. A larger transaction is no faster.
BATCH_BYTES = 4_000_000

# How long the database may take for a part of the spool while no request waits for that part.
_PART_SECONDS = 60.0

# Pauses between attempts to reach a database that is away. Each pause is twice the previous one, up to the longest.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

# Errors that mean that the database could not do its work. All other exceptions are bugs of the loader.
AWAY = (psycopg.Error, LoaderError, OSError)

log = structlog.get_logger("loader")


class SpoolReplay:
    """Replays a spool until the spool is empty.

    Args:
        connect: Opens a connection to the database, in autocommit; may raise any exception.
        spool: The spool.
        warehouse: The id and the clock of the database's warehouse. Each attempt reads both before it lands events.
        mode: The lock that protects the decision between database and spool.
        seconds: How long the database may take while requests wait.
        emptied: Called when the spool is empty, while `mode` is held. The arguments are the connection and the
            collections and properties that the replay knows.
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
        """Stop the replay soon, from any thread; the database tells the next process how far the spool has landed."""
        self._stopping.set()
        if connection := self._connection:
            cut(connection)

    def run(self) -> None:
        """Connect to the database and replay the spool; repeat until the spool is empty or `stop` is called."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        told = ""
        while not self._stopping.is_set():
            try:
                if self._attempt():
                    return
            except AWAY as error:
                reason = describe(error)
                if reason != told and not self._stopping.is_set():
                    log.warning("the spool cannot be replayed yet", reason=reason)
                    told = reason
                self._stopping.wait(backoff.fail())
            except Exception:
                log.exception("the spool could not be replayed; trying again")
                self._stopping.wait(_LONGEST_PAUSE)

    def _attempt(self) -> bool:
        connection = self._connection = self._connect()
        is_empty = False
        try:
            is_empty = self._replay(connection)
        finally:
            if not is_empty:
                connection.close()
        return is_empty

    def _replay(self, connection: psycopg.Connection) -> bool:
        """Land the deliveries of the spool, part by part; return False when `stop` has interrupted the replay."""
        with time_limit(connection, self._seconds):
            forget_old(connection)
            positions = read_positions(connection)
            here = self._warehouse.identify(connection)
        with self._mode:
            self._spool.adopt(here)
            # This process takes the positions of its own segments from the database too, because the commit of its last
            # part may have got no answer.
            self._spool.resume(positions)
        registry = SchemaRegistry()
        replayed = 0
        proven = False
        while not self._stopping.is_set():
            with self._mode:
                part = self._spool.next_part(BATCH_BYTES)
                if part and part.last and proven:
                    # The last part lands while `mode` is held, so the writing thread waits. Otherwise a steady load
                    # would keep the spool from ever being empty. An earlier part has shown that the database accepts
                    # parts.
                    replayed += self._land(connection, registry, part, self._seconds)
                    part = self._spool.next_part(BATCH_BYTES)
                if part is None:
                    self._emptied(connection, registry)
                    # The connection belongs to the writing thread now.
                    self._connection = None
                    metrics.spool_bytes.set(0)
                    log.info("events go to the database", replayed=replayed)
                    return True
            replayed += self._land(connection, registry, part, _PART_SECONDS)
            proven = True
        return False

    def _land(self, connection: psycopg.Connection, registry: SchemaRegistry, part: Part, seconds: float) -> int:
        """Land a part of the spool and record its position, in one transaction; return the number of landed events."""
        started = time.monotonic()
        with time_limit(connection, seconds):
            landed = _land_part(connection, registry, part, self._warehouse)
        count_landed(landed, time.monotonic() - started)
        with self._mode:
            self._spool.mark_committed(part)
            metrics.spool_bytes.set(self._spool.size)
        return landed.rows


def land_segment(connection: psycopg.Connection, folder: Path, name: str) -> LandingResult:
    """Land one segment of a spool, of any warehouse, over a connection in autocommit, and delete the segment.

    Raises:
        SpoolError: There is no such segment, or a process holds the segment.
        LoaderError: The segment holds events of a source that this database does not have. The parts before them have
            landed.
    """
    warehouse = Warehouse()
    warehouse.identify(connection)
    spool = Spool(folder, 0)
    registry = SchemaRegistry()
    total = LandingResult()
    try:
        spool.take(name)
        spool.resume(read_positions(connection))
        sources = {schema for (schema,) in connection.execute("select schema_name from raw.sources")}
        while part := spool.next_part(BATCH_BYTES):
            if missing := {delivery.source for delivery in part.deliveries} - sources:
                raise LoaderError(
                    f"Segment {name} holds events of a source with the schema {min(missing)}, which this database does "
                    f"not have. Run `loader source add NAME --schema {min(missing)}`, then this command again."
                )
            total.add(_land_part(connection, registry, part, warehouse))
            spool.mark_committed(part)
    finally:
        spool.close()
    return total


def _land_part(
    connection: psycopg.Connection, registry: SchemaRegistry, part: Part, warehouse: Warehouse
) -> LandingResult:
    """Land a part of a spool and record its position, in one transaction."""
    deliveries = [
        each if each.is_corrected else msgspec.structs.replace(each, received_at=warehouse.correct(each.received_at))
        for each in part.deliveries
    ]
    with registry.transaction(connection) as changes:
        landed = land_parts(connection, deliveries, changes)
        if not advance(connection, part.segment, part.offset, part.end):
            raise LoaderError(f"Segment {part.segment} is being replayed by another process.")
    return landed


def describe(error: BaseException) -> str:
    """Return the text of an error in one line, with the SQLSTATE and without any value of a row."""
    if isinstance(error, psycopg.Error):
        message = error.diag.message_primary or type(error).__name__
        return f"{error.sqlstate or 'connection lost'}: {without_values(message)}"
    return without_values(error)


def count_landed(landed: LandingResult, seconds: float) -> None:
    """Add the landed events and quarantined messages of a transaction, and its duration, to the metrics."""
    metrics.landed_events.inc(landed.rows)
    metrics.batch_events.observe(landed.rows)
    metrics.commit_seconds.observe(seconds)
    for reason, number in landed.reasons.items():
        metrics.quarantined.labels(reason).inc(number)
    if landed.quarantined > landed.repaired:
        metrics.refusals.add(messages=landed.quarantined - landed.repaired)
