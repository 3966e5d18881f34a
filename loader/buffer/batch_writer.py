"""Makes what the collector takes durable: deliveries of all connections share a commit, or a sync of the spool.

No timer sets the pace. While one batch is on its way to the database, the next one gathers, and leaves when the first
is committed. A single delivery waits for nothing; under load, hundreds share one commit. The event loop sends a batch
over one of two asynchronous connections. A batch as large as the one ahead of it does not wait for that one. A thread
takes the batches that need more than one statement, and those that failed.

When the database cannot take a batch, it goes to the spool instead, and so does everything after it until the spool has
been drained: what came first lands first. Only the database's word that a row is at fault sends it to quarantine.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

import psycopg
import structlog

from loader.buffer.async_connection import AsyncConnection
from loader.buffer.backlog import Backlog, Done, Waiting
from loader.buffer.connection_pool import ConnectionPool
from loader.buffer.spool import Spool
from loader.buffer.spool_replay import AWAY, BATCH_BYTES, SpoolReplay, count_landed, describe
from loader.buffer.tasks import Task, Tasks
from loader.errors import SpoolError, UnavailableError
from loader.events.model import Delivery, Event, Refused
from loader.postgres.connection import cut
from loader.postgres.warehouse import Warehouse
from loader.raw.batches import land_deliveries, landing_statement
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import LandingResult
from loader.runtime import metrics

# A larger batch is not worth a place in the event loop.
ASYNC_BYTES = 1_000_000

# How long a small batch waits for the one ahead of it: for longer than the database usually takes, and no more.
_HOLD_SECONDS = 0.05

# How long it may go unnoticed that the database does not answer.
_WATCH_SECONDS = 0.2

# How long the end waits for a thread that waits for the database.
_JOIN_SECONDS = 60.0

log = structlog.get_logger("loader")


class BatchWriter:
    """Writes deliveries; its methods are for the event loop's thread.

    Args:
        connect: Opens a connection to the database, in autocommit; raises what it likes when it cannot.
        spool: Where deliveries wait while the database is away.
        warehouse: The warehouse the database is.
        queue_bytes: Bytes that may wait to be written.
        commit_seconds: How long the database may take for a batch before it counts as away.
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
        # The number of deliveries in the last batch of the pool, and how long a smaller batch waits for that one.
        self._ahead = 0
        self._held = 0.0
        self._holding: asyncio.TimerHandle | None = None
        # Tasks the writing thread has, or will have next.
        self._threaded = 0
        self._tasks = Tasks()
        self._connection: psycopg.Connection | None = None
        self._deadline = float("inf")
        self._registry = SchemaRegistry()
        # Held by the writing and the draining thread, to change whether deliveries go to the spool or to rely on it.
        self._mode = threading.RLock()
        self._spooling = True
        self._replay = self._new_replay()
        self._threads: list[threading.Thread] = []
        self._stopping = False
        # There are these once it has started.
        self._loop: asyncio.AbstractEventLoop
        self._pool: ConnectionPool
        self._watching: asyncio.Task[None] | None = None

    @property
    def spooling(self) -> bool:
        """Whether deliveries go to the spool at the moment."""
        return self._spooling

    async def start(self) -> None:
        """Begin; what an earlier process has left in the spool is drained before anything new lands."""
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
        """Wait until deliveries go to the database; say whether they do."""
        until = self._loop.time() + seconds
        while self._spooling and self._loop.time() < until:
            await asyncio.sleep(0.01)
        return not self._spooling

    async def stop(self) -> None:
        """End when everything that was submitted is written; what is in the spool stays there."""
        self._stopping = True
        while self._backlog or self._threaded or self._pool.are_busy:
            await asyncio.sleep(0.01)
        self._tasks.put(None)
        self._replay.stop()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _JOIN_SECONDS)
        if self._watching:
            self._watching.cancel()
        await self._pool.close()
        self._disconnect()
        self._spool.close()
        metrics.flush()

    def delivery(self, source: str, entrance: str, events: list[Event], refused: list[Refused]) -> Delivery:
        """Return messages as a delivery received now, by the database's clock as far as its offset is known."""
        warehouse = self._warehouse
        return Delivery(source, entrance, events, refused, warehouse.now(), is_corrected=warehouse.is_measured)

    async def write(self, delivery: Delivery) -> None:
        """Write a delivery; it is durable when this returns.

        Raises:
            UnavailableError: It could not be made durable, or too much is waiting already.
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
        """Hand over a delivery.

        Args:
            delivery: The delivery.
            done: Called when it is durable, or with why it could not be made so.

        Raises:
            UnavailableError: Too much is waiting already.
        """
        self._backlog.add(delivery, done)
        self._send_soon()

    def _send_soon(self) -> None:
        """Send what gathers until the event loop has seen to everything that came at the same time."""
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Send what has gathered on its way, as long as there is a way for it."""
        self._sending = False
        while self._backlog:
            connection = None if self._spooling else self._pool.free()
            if (
                connection
                and self._pool.are_busy
                and len(self._backlog) < self._ahead
                and self._loop.time() < self._held
            ):
                # Each batch costs the database the same once more: it had better be as large as the one ahead.
                if self._holding is None:
                    self._holding = self._loop.call_at(self._held, self._release)
                return
            if connection:
                batch = self._backlog.take(ASYNC_BYTES)
                if not self._send_by(connection, batch):
                    self._leave_to_thread(batch)
            elif self._threaded or (self._pool and not self._spooling):
                # It gathers until one of those under way is back.
                return
            else:
                self._leave_to_thread(self._backlog.take(BATCH_BYTES))

    def _release(self) -> None:
        self._holding = None
        self._send()

    def _send_by(self, connection: AsyncConnection, batch: list[Waiting]) -> bool:
        """Send a batch over a connection, unless there is more to do for it; say whether it is on its way."""
        started = time.monotonic()
        deliveries = [delivery for delivery, _, _ in batch]
        try:
            statement = landing_statement(self._registry, deliveries)
        except Exception:  # noqa: BLE001 - the thread meets it as well, and answers
            statement = None
        if statement is None:
            return False

        def done(error: Exception | None) -> None:
            self._pool.released(connection)
            if error is not None:
                # The thread finds out what is wrong. Should it have landed all the same, its ids make it one.
                self._leave_to_thread(batch, late=time.monotonic() - started >= self._commit_seconds)
                return
            count_landed(
                LandingResult(sum(len(delivery.events) for delivery in deliveries)), time.monotonic() - started
            )
            self._answer(batch, None)

        self._ahead = len(batch)
        self._held = self._loop.time() + _HOLD_SECONDS
        connection.execute(statement, done)
        return True

    def _leave_to_thread(self, batch: list[Waiting], *, late: bool = False) -> None:
        self._threaded += 1
        self._tasks.put(Task(batch, late=late))

    def _written(self, task: Task, error: UnavailableError | None) -> None:
        """Go on after what the thread had to do."""
        self._threaded -= task.number
        self._answer(task.batch, error)

    def _answer(self, batch: list[Waiting], error: UnavailableError | None) -> None:
        """Answer a batch, and send the next."""
        self._backlog.answer(batch, error)
        self._send_soon()

    def _turn_to_spool(self) -> None:
        self._pool.retire()
        if not self._stopping:
            self._replay = self._new_replay()
            self._start_thread(self._replay.run)

    async def _watch(self) -> None:
        """Watch for a database that never answers, and for broken connections."""
        while True:
            await asyncio.sleep(min(self._commit_seconds / 4, _WATCH_SECONDS))
            metrics.flush()
            self._pool.mend()
            late = self._pool.cut_late()
            connection = self._connection
            if time.monotonic() > self._deadline and connection and not connection.closed:
                self._deadline = float("inf")
                cut(connection)
                late = True
            if late:
                log.warning("the database has not answered in time", seconds=self._commit_seconds)

    # From here on: the writing thread.

    def _write(self) -> None:
        refusing = False
        task: Task | None
        while task := self._tasks.next():
            error: UnavailableError | None = None
            try:
                self._store(task, [delivery for delivery, _, _ in task.batch])
                refusing = False
            except SpoolError as failed:
                if not refusing:
                    log.warning("events are refused: neither the database nor the spool takes them", reason=str(failed))
                refusing = True
                # What the reason says of this machine is for its log.
                error = UnavailableError("The database is away, and the spool takes no more. Try again in a moment.")
            except Exception as failed:  # a mistake of ours must not be taken for success, nor stop the writer
                log.exception("a batch could not be written")
                error = UnavailableError(f"The collector has failed ({type(failed).__name__}). Try again.")
            self._loop.call_soon_threadsafe(self._written, task, error)
            # The next task may come late, and this one holds the connections of its senders.
            task = None

    def _store(self, task: Task, deliveries: list[Delivery]) -> None:
        """Make deliveries durable, in the database or else in the spool."""
        with self._mode:
            if self._spooling:
                self._append(deliveries)
                return
        try:
            if task.late:
                raise UnavailableError("A batch has had no answer in time.")
            self._land(deliveries)
        except AWAY as error:
            log.warning("the database is away, events go to the spool", reason=describe(error))
            with self._mode:
                # One step: the draining thread, too, must find these in the spool before it finds it empty.
                self._begin_spooling()
                self._append(deliveries)

    def _land(self, deliveries: list[Delivery]) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - not spooling
        started = time.monotonic()
        self._deadline = started + self._commit_seconds
        try:
            if any(delivery.events or delivery.refused for delivery in deliveries):
                landed = land_deliveries(connection, self._registry, deliveries)
                count_landed(landed, time.monotonic() - started)
            else:
                # A probe: only a server that can write gives out a transaction id.
                connection.execute("select pg_current_xact_id()")
        finally:
            self._deadline = float("inf")

    def _disconnect(self) -> None:
        if self._connection:
            with contextlib.suppress(psycopg.Error, OSError):
                self._connection.close()
            self._connection = None

    def _append(self, deliveries: list[Delivery]) -> None:
        kept = [delivery for delivery in deliveries if delivery.events or delivery.refused]
        if kept:
            self._spool.append(kept)
            metrics.spooled_events.inc(sum(len(delivery.events) for delivery in kept))
            metrics.spool_bytes.set(self._spool.size)
        else:
            # A probe, for which anybody may ask: it costs the disk nothing.
            self._spool.check_room()

    def _begin_spooling(self) -> None:
        self._disconnect()
        self._spooling = True
        metrics.database_up.set(0)
        self._loop.call_soon_threadsafe(self._turn_to_spool)

    def _start_thread(self, work: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, name=f"loader-{work.__name__.strip('_')}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # From here on: the draining thread.

    def _new_replay(self) -> SpoolReplay:
        return SpoolReplay(
            self._connect,
            self._spool,
            self._warehouse,
            mode=self._mode,
            seconds=self._commit_seconds,
            emptied=self._end_spooling,
        )

    def _end_spooling(self, connection: psycopg.Connection, registry: SchemaRegistry) -> None:
        """Let deliveries go to the database again; by the thread, until there are connections."""
        self._connection = connection
        self._registry = registry
        self._spooling = False
        metrics.database_up.set(1)
        self._loop.call_soon_threadsafe(self._pool.mend)
