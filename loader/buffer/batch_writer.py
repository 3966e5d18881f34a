"""Makes accepted deliveries durable by group commit in the database, or in the spool while the database is away.

No timer sets the pace. While one batch is on its way to the database, the next batch gathers. The next batch leaves
when the first batch is committed. A single delivery waits for nothing; under load, hundreds share one commit.

The event loop sends a batch over one of two asynchronous connections. A batch with as many deliveries as are under way
leaves at once, so that the database and the event loop both work. A thread lands the batches that need more than one
statement, and failed batches.

A batch that the database cannot take goes to the spool. All later batches go to the spool too, until the spool has been
replayed. So deliveries land in their order. A row goes to quarantine only when the database reports that the row is at
fault.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import psycopg
import structlog

from loader.buffer.async_connection import AsyncConnection
from loader.buffer.backlog import Backlog, Done, Waiting
from loader.buffer.connection_pool import ConnectionPool
from loader.buffer.spool import Spool
from loader.buffer.spool_replay import AWAY, BATCH_BYTES, SpoolReplay, count_landed, describe
from loader.errors import SpoolError, UnavailableError
from loader.events.model import Delivery, Event, Refused
from loader.postgres.connection import time_limit
from loader.postgres.warehouse import Warehouse
from loader.raw.batches import land_deliveries, landing_statement
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import LandingResult
from loader.runtime import metrics

# Bytes after which a batch for an asynchronous connection is full: a larger batch would hold up the event loop.
ASYNC_BYTES = 1_000_000

# How long a batch with fewer deliveries than are under way waits. The database usually takes less for a batch.
_HOLD_SECONDS = 0.05

# Longest time between two checks for a database that does not answer.
_WATCH_SECONDS = 0.2

# How long `stop` waits for each thread, which may be waiting for the database.
_JOIN_SECONDS = 60.0

log = structlog.get_logger("loader")


class BatchWriter:
    """Makes deliveries durable; call its methods from the thread of the event loop.

    Args:
        connect: Opens a connection to the database, in autocommit; may raise any exception.
        spool: Keeps deliveries while the database is away.
        warehouse: The id and the clock of the database's warehouse.
        queue_bytes: Bytes that may wait to be written.
        commit_seconds: How long the database may take for a batch. A slower database counts as away.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        spool: Spool,
        warehouse: Warehouse,
        *,
        queue_bytes: int,
        commit_seconds: float,
    ) -> None:
        self._connect = connect
        self._spool = spool
        self._warehouse = warehouse
        self._backlog = Backlog(queue_bytes)
        self._commit_seconds = commit_seconds
        self._sending = False
        # The time until which a batch with fewer deliveries than are under way waits.
        self._held = 0.0
        self._holding: asyncio.TimerHandle | None = None
        # The batches for the writing thread, and whether the database has left a connection with the batch without an
        # answer in time. An empty batch ends the thread.
        self._batches: SimpleQueue[tuple[list[Waiting], bool]] = SimpleQueue()
        # The number of deliveries that the writing thread has not finished.
        self._threaded = 0
        self._connection: psycopg.Connection | None = None
        self._registry = SchemaRegistry()
        # Protects the decision between database and spool. The writing thread and the replaying thread hold this lock
        # while they change the decision or rely on it.
        self._mode = threading.RLock()
        self._spooling = True
        self._replay = SpoolReplay(
            connect, spool, warehouse, mode=self._mode, seconds=commit_seconds, emptied=self._end_spooling
        )
        self._threads: list[threading.Thread] = []
        self._stopping = False
        # `start` sets these.
        self._loop: asyncio.AbstractEventLoop
        self._pool: ConnectionPool
        self._watching: asyncio.Task[None] | None = None

    @property
    def spooling(self) -> bool:
        """Whether deliveries go to the spool now."""
        return self._spooling

    async def start(self) -> None:
        """Start the threads; events that an earlier process left in the spool land before new events."""
        self._loop = asyncio.get_running_loop()
        self._pool = ConnectionPool(
            self._connect, self._loop, self._commit_seconds, lambda: not self._spooling and not self._stopping
        )
        if self._spool.adopt(self._warehouse.id):
            log.info("an earlier process has left events in the spool", bytes=self._spool.size)
        self._start_thread(self._write)
        self._start_thread(self._replay.run)
        self._watching = self._loop.create_task(self._watch())

    async def reached_database(self, seconds: float) -> bool:
        """Wait until deliveries go to the database, but no longer than `seconds`; return whether they do."""
        until = self._loop.time() + seconds
        while self._spooling and self._loop.time() < until:
            await asyncio.sleep(0.01)
        return not self._spooling

    async def stop(self) -> None:
        """Wait until all submitted deliveries are written, then end; events in the spool stay there."""
        self._stopping = True
        while self._backlog or self._threaded or self._pool.are_busy:
            await asyncio.sleep(0.01)
        self._batches.put(([], False))
        self._replay.stop()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _JOIN_SECONDS)
        if self._watching:
            self._watching.cancel()
        await self._pool.close()
        if self._connection:
            self._connection.close()
        self._spool.close()
        metrics.flush()

    def delivery(self, source: str, entrance: str, events: list[Event], refused: list[Refused]) -> Delivery:
        """Return messages as a delivery that was received now.

        The time is that of the database's clock. Before the clock's offset has been measured, the time is that of this
        machine's clock.
        """
        warehouse = self._warehouse
        return Delivery(source, entrance, events, refused, warehouse.now(), is_corrected=warehouse.is_measured)

    async def write(self, delivery: Delivery) -> None:
        """Write a delivery; the delivery is durable when this method returns.

        Raises:
            UnavailableError: The delivery could not be made durable, or too many bytes are waiting.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def done(error: UnavailableError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.submit(delivery, done)
        await future

    def submit(self, delivery: Delivery, done: Done) -> None:
        """Queue a delivery to be written.

        Args:
            delivery: The delivery.
            done: Called with None when the delivery is durable, or with the error that prevented it.

        Raises:
            UnavailableError: Too many bytes are waiting.
        """
        if self._backlog.add(delivery, done):
            # The database begins with a full batch while the event loop still reads the requests of this turn.
            self._send()
        else:
            self._send_soon()

    def _send_soon(self) -> None:
        """Schedule `_send`, so that deliveries that arrive in the same turn of the event loop share a batch."""
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Send the waiting deliveries in batches, as long as a connection or the writing thread can take a batch."""
        self._sending = False
        while self._backlog:
            connection = None if self._spooling else self._pool.free()
            if connection:
                is_small = len(self._backlog) < self._backlog.under_way and self._loop.time() < self._held
                if is_small and self._pool.are_busy:
                    # A commit costs the database 150 µs at any size. So a small batch waits and grows.
                    if self._holding is None:
                        self._holding = self._loop.call_at(self._held, self._release)
                    return
                batch = self._backlog.take(ASYNC_BYTES, self._backlog.full)
                if not self._send_by(connection, batch):
                    self._leave_to_thread(batch)
            elif self._threaded or (self._pool and not self._spooling):
                # Deliveries gather until a connection or the writing thread has finished a batch.
                return
            else:
                self._leave_to_thread(self._backlog.take(BATCH_BYTES))

    def _release(self) -> None:
        self._holding = None
        self._send()

    def _send_by(self, connection: AsyncConnection, batch: list[Waiting]) -> bool:
        """Send a batch over a connection, if one statement can land the batch; return whether it was sent."""
        started = time.monotonic()
        deliveries = [delivery for delivery, _, _ in batch]
        try:
            statement = landing_statement(self._registry, deliveries)
        except Exception:  # noqa: BLE001 - the same error occurs in the writing thread, which answers the batch
            statement = None
        if statement is None:
            return False

        def done(error: Exception | None) -> None:
            self._pool.released(connection)
            if error is not None:
                # The writing thread finds the cause. A batch that has landed in spite of the error lands twice in
                # `raw.events`. Its events have the same ids both times, so each event is in its table once.
                self._leave_to_thread(batch, late=time.monotonic() - started >= self._commit_seconds)
                return
            count_landed(
                LandingResult(sum(len(delivery.events) for delivery in deliveries)), time.monotonic() - started
            )
            self._answer(batch, None)

        self._held = self._loop.time() + _HOLD_SECONDS
        connection.execute(statement, done)
        return True

    def _leave_to_thread(self, batch: list[Waiting], *, late: bool = False) -> None:
        self._threaded += len(batch)
        self._batches.put((batch, late))

    def _written(self, batch: list[Waiting], error: UnavailableError | None) -> None:
        """Answer a batch that the writing thread has finished."""
        self._threaded -= len(batch)
        self._answer(batch, error)

    def _answer(self, batch: list[Waiting], error: UnavailableError | None) -> None:
        """Answer a batch, and schedule the next batch."""
        self._backlog.answer(batch, error)
        self._send_soon()

    def _turn_to_spool(self) -> None:
        self._pool.retire()
        if not self._stopping:
            self._start_thread(self._replay.run)

    async def _watch(self) -> None:
        """Cut connections whose database does not answer in time, and replace broken connections."""
        while True:
            await asyncio.sleep(min(self._commit_seconds / 4, _WATCH_SECONDS))
            metrics.flush()
            self._pool.mend()
            if self._pool.cut_late():
                log.warning("the database has not answered in time", seconds=self._commit_seconds)

    # The methods from here on run in the writing thread.

    def _write(self) -> None:
        refusing = False
        while True:
            batch, late = self._next_batch()
            if not batch:
                return
            error: UnavailableError | None = None
            try:
                self._store([delivery for delivery, _, _ in batch], late=late)
                refusing = False
            except SpoolError as failed:
                if not refusing:
                    log.warning(
                        "events are refused: neither the database nor the spool accepts them", reason=str(failed)
                    )
                refusing = True
                # The sender does not get the reason: it may name a folder of this machine. The log has the reason.
                error = UnavailableError(
                    "The database is away, and the spool accepts no events. Try again in a moment."
                )
            except Exception as failed:  # after a bug, the requests get an error and the thread continues
                log.exception("a batch could not be written")
                error = UnavailableError(f"The collector has failed ({type(failed).__name__}). Try again.")
            self._loop.call_soon_threadsafe(self._written, batch, error)
            # A finished batch keeps its senders' connections in memory, and the next batch may come much later.
            del batch

    def _next_batch(self) -> tuple[list[Waiting], bool]:
        """Wait for a batch, and combine it with the batches behind it, so that they share a commit."""
        batch, late = self._batches.get()
        while not self._batches.empty() and sum(size for _, size, _ in batch) < BATCH_BYTES:
            following, is_late = self._batches.get()
            batch, late = batch + following, late or is_late
        return batch, late

    def _store(self, deliveries: list[Delivery], *, late: bool) -> None:
        """Make deliveries durable in the database, or in the spool when the database cannot take them."""
        with self._mode:
            if self._spooling:
                self._append(deliveries)
                return
        try:
            if late:
                raise UnavailableError("The database has not answered a batch in time.")
            self._land(deliveries)
        except AWAY as error:
            log.warning("the database is away; events go to the spool", reason=describe(error))
            with self._mode:
                # Both calls are one step under the lock. Otherwise the replaying thread could find the spool empty
                # before these deliveries are in the spool.
                self._begin_spooling()
                self._append(deliveries)

    def _land(self, deliveries: list[Delivery]) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - the connection is set while `_spooling` is false
        started = time.monotonic()
        with time_limit(connection, self._commit_seconds):
            if any(delivery.events or delivery.refused for delivery in deliveries):
                landed = land_deliveries(connection, self._registry, deliveries)
                count_landed(landed, time.monotonic() - started)
            else:
                # A probe of readiness. Only a server that can write assigns a transaction id.
                connection.execute("select pg_current_xact_id()")

    def _append(self, deliveries: list[Delivery]) -> None:
        kept = [delivery for delivery in deliveries if delivery.events or delivery.refused]
        if kept:
            self._spool.append(kept)
            metrics.spooled_events.inc(sum(len(delivery.events) for delivery in kept))
            metrics.spool_bytes.set(self._spool.size)
        else:
            # A probe of readiness writes nothing to the disk, because any client may ask for a probe.
            self._spool.check_room()

    # The caller holds `_mode`.
    def _begin_spooling(self) -> None:
        if self._connection:
            self._connection.close()
        self._spooling = True
        metrics.database_up.set(0)
        self._loop.call_soon_threadsafe(self._turn_to_spool)

    def _start_thread(self, work: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, name=f"loader-{work.__name__.strip('_')}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # `_end_spooling` runs in the replaying thread.

    def _end_spooling(self, connection: psycopg.Connection, registry: SchemaRegistry) -> None:
        """Switch from the spool to the database; the writing thread uses the connection of the replay from now on.

        The writing thread lands all batches until the asynchronous connections are open.
        """
        self._connection = connection
        self._registry = registry
        self._spooling = False
        metrics.database_up.set(1)
        self._loop.call_soon_threadsafe(self._pool.mend)
