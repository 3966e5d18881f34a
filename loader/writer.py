"""Makes what the collector takes durable: deliveries of all connections share a commit, or a sync of the spool.

There is no timer. While one batch is on its way to the database the next one gathers, and leaves when the first is
back: alone, a delivery waits for nobody; under load, hundreds share one COPY. The event loop sends it itself; what takes
more than that is done in a thread, and whatever goes wrong is.

When the database cannot take a batch, it goes to the spool instead, and so does everything after it until the spool has
been drained: what came first lands first. Only the database's word that a row is at fault sends it to quarantine.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import psycopg
import structlog

from loader import metrics
from loader.catalog import Tracker
from loader.connection import cut, time_limit
from loader.deliveries import land_deliveries, land_parts, look_again, usual_arrays
from loader.errors import LoaderError, SpoolError, UnavailableError
from loader.events import Delivery
from loader.landing import Landed
from loader.rows import INSERT
from loader.spool import Part, Spool
from loader.wire import Wire

# What one transaction takes at most: beyond this, a larger one is not faster.
BATCH_BYTES = 4_000_000

# A larger one is not worth a place in the event loop.
WIRE_BYTES = 1_000_000

# How long it may go unnoticed that the record of the events has been made again.
_CHECK_SECONDS = 0.2

# What the database may take for a part of the spool, for which nobody waits.
_DRAIN_SECONDS = 60.0

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
_AWAY = (psycopg.Error, LoaderError, OSError)

log = structlog.get_logger("loader")

_Waiting = tuple[Delivery, int, asyncio.Future[None]]


class Writer:
    """Writes deliveries, in a thread of its own; its methods are for the event loop's.

    Args:
        connect: Opens a connection to the database, in autocommit; raises what it likes when it cannot.
        spool: Where deliveries wait while the database is away.
        queue_bytes: Bytes that may wait to be written.
        commit_seconds: How long the database may take for a batch before it counts as away.
    """

    def __init__(
        self, connect: Callable[[], psycopg.Connection], spool: Spool, *, queue_bytes: int, commit_seconds: float
    ) -> None:
        self._connect = connect
        self._spool = spool
        self._queue_bytes = queue_bytes
        self._commit_seconds = commit_seconds
        self._waiting: list[_Waiting] = []
        self._queued = 0
        self._busy = False
        self._batches: SimpleQueue[list[_Waiting] | None] = SimpleQueue()
        self._connection: psycopg.Connection | None = None
        self._draining: psycopg.Connection | None = None
        self._deadline = float("inf")
        self._tracker = Tracker()
        self._wire: Wire | None = None
        # What has gone over the wire since somebody made sure that it held nothing new.
        self._unchecked: list[Delivery] = []
        self._checked = time.monotonic()
        # Held by the writing and the draining thread, to change whether deliveries go to the spool or to rely on it.
        self._mode = threading.RLock()
        self._spooling = False
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def spooling(self) -> bool:
        """Whether deliveries go to the spool at the moment."""
        return self._spooling

    async def start(self) -> None:
        """Begin; what an earlier process has left in the spool is drained before anything new lands."""
        self._loop = asyncio.get_running_loop()
        if self._spool.adopt():
            log.info("an earlier process has left events in the spool", bytes=self._spool.size)
        self._spooling = True
        self._start_thread(self._write)
        self._start_thread(self._drain)
        self._watch = self._loop.create_task(self._watch_deadline())

    async def reached_database(self, seconds: float) -> bool:
        """Wait until deliveries go to the database; say whether they do."""
        assert self._loop is not None  # noqa: S101 - started
        until = self._loop.time() + seconds
        while self._spooling and self._loop.time() < until:
            await asyncio.sleep(0.01)
        return not self._spooling

    async def stop(self) -> None:
        """End when everything that was submitted is written; what is in the spool stays there."""
        self._stopping.set()
        while self._waiting or self._busy:
            await asyncio.sleep(0.01)
        self._batches.put(None)
        if draining := self._draining:
            # A part on its way is left to the next process, which learns from the database whether it has landed.
            cut(draining)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _DRAIN_SECONDS)
        if self._watch:
            self._watch.cancel()
        if self._connection:
            self._connection.close()
        self._spool.close()

    def submit(self, delivery: Delivery) -> asyncio.Future[None]:
        """Hand over a delivery.

        Returns:
            What is done when the delivery is durable, or raises `UnavailableError` when it could not be made so.

        Raises:
            UnavailableError: Too much is waiting already.
        """
        assert self._loop is not None  # noqa: S101 - started
        size = delivery.size
        if self._queued + size > self._queue_bytes and self._queued:
            raise UnavailableError("The collector has more waiting than it may hold. Try again in a moment.")
        future: asyncio.Future[None] = self._loop.create_future()
        self._queued += size
        self._waiting.append((delivery, size, future))
        if not self._busy:
            self._busy = True
            # Not at once: requests that arrived together are to leave together.
            self._loop.call_soon(self._send)
        return future

    def _send(self) -> None:
        """Send what has gathered on its way: over the wire as long as there is nothing else to do."""
        wire = self._wire
        # The writing thread rests as long as no batch is in its queue, so the connection is ours.
        if self._spooling or wire is None or time.monotonic() - self._checked > _CHECK_SECONDS:
            self._batches.put(self._take(BATCH_BYTES))
            return
        batch = self._take(WIRE_BYTES)
        deliveries = [delivery for delivery, _, _ in batch]
        arrays = usual_arrays(self._tracker, deliveries)
        if arrays is None:
            self._batches.put(batch)
            return
        started = time.monotonic()
        self._deadline = started + self._commit_seconds

        def done(error: Exception | None) -> None:
            """Answer what has gone over the wire, or leave it to the thread to find out what is wrong."""
            self._deadline = float("inf")
            if error is not None:
                # Should it have landed all the same, its ids make it one.
                self._batches.put(batch)
                return
            self._unchecked += deliveries
            _count(Landed(sum(len(delivery.events) for delivery in deliveries)), time.monotonic() - started)
            self._written(batch, None)

        assert self._loop is not None  # noqa: S101 - started
        wire.execute(self._loop, arrays, done)

    def _take(self, limit: int) -> list[_Waiting]:
        size = 0
        count = 0
        for _, each, _ in self._waiting:
            size += each
            count += 1
            if size >= limit:
                break
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        metrics.queue_bytes.set(self._queued)
        return batch

    def _written(self, batch: list[_Waiting], error: Exception | None) -> None:
        """Answer a batch, and send the next."""
        for _, size, future in batch:
            self._queued -= size
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                # Nobody may be there any more to look at it, which is no error of its own.
                future.exception()
        metrics.queue_bytes.set(self._queued)
        if self._waiting:
            self._send()
        else:
            self._busy = False

    async def _watch_deadline(self) -> None:
        """Cut the connection of a database that takes a batch and never answers."""
        while True:
            await asyncio.sleep(min(self._commit_seconds / 4, 1.0))
            connection = self._connection
            if time.monotonic() > self._deadline and connection and not connection.closed:
                log.warning("the database has not answered in time", seconds=self._commit_seconds)
                self._deadline = float("inf")
                cut(connection)

    # From here on: the writing thread.

    def _write(self) -> None:
        assert self._loop is not None  # noqa: S101 - started
        refusing = False
        while (batch := self._batches.get()) is not None:
            error: Exception | None = None
            try:
                self._store([delivery for delivery, _, _ in batch])
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
            self._loop.call_soon_threadsafe(self._written, batch, error)

    def _store(self, deliveries: list[Delivery]) -> None:
        """Make deliveries durable, in the database or else in the spool."""
        with self._mode:
            if self._spooling:
                self._append(deliveries)
                return
        try:
            self._land(deliveries)
        except _AWAY as error:
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
                self._check(connection)
                landed = land_deliveries(connection, self._tracker, deliveries)
                _count(landed, time.monotonic() - started)
            else:
                # A probe: only a server that can write gives out a transaction id.
                connection.execute("select pg_current_xact_id()")
        finally:
            self._deadline = float("inf")

    def _check(self, connection: psycopg.Connection) -> None:
        """Make sure that what has gone over the wire held nothing new."""
        look_again(connection, self._tracker, self._unchecked)
        self._unchecked = []
        self._checked = time.monotonic()

    def _disconnect(self) -> None:
        if self._connection:
            with contextlib.suppress(psycopg.Error, OSError):
                self._connection.close()
            self._connection = None
            self._wire = None

    def _append(self, deliveries: list[Delivery]) -> None:
        self._spool.append([delivery.with_times() for delivery in deliveries])
        metrics.spooled_events.inc(sum(len(delivery.events) for delivery in deliveries))
        metrics.spool_bytes.set(self._spool.size)

    def _begin_spooling(self) -> None:
        self._disconnect()
        self._spooling = True
        metrics.database_up.set(0)
        self._start_thread(self._drain)

    def _start_thread(self, work: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, name=f"loader-{work.__name__.strip('_')}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # From here on: the thread that drains, while there is something to drain.

    def _drain(self) -> None:
        """Bring the database back, and the spool into it; then let deliveries go to the database again."""
        pause = _FIRST_PAUSE
        told = ""
        while not self._stopping.is_set():
            try:
                connection = self._connect()
                self._draining = connection
                try:
                    done = self._drain_into(connection)
                except BaseException:
                    connection.close()
                    raise
                finally:
                    self._draining = None
            except _AWAY as error:
                reason = describe(error)
                if reason != told and not self._stopping.is_set():
                    log.warning("the spool cannot be drained yet", reason=reason)
                    told = reason
                self._stopping.wait(pause * random.uniform(0.5, 1))  # noqa: S311 - so that processes do not march in step
                pause = min(pause * 2, _LONGEST_PAUSE)
            except Exception:
                log.exception("the spool could not be drained; trying again")
                self._stopping.wait(_LONGEST_PAUSE)
            else:
                if not done:
                    connection.close()
                return

    def _drain_into(self, connection: psycopg.Connection) -> bool:
        """Land what is in the spool, part by part; False when it was interrupted by the end of the process."""
        with time_limit(connection, self._commit_seconds):
            wire = Wire(connection, INSERT)
            connection.execute(_FORGET)
            positions: dict[str, int] = dict(connection.execute(_SPOOLS).fetchall())
        with self._mode:
            # Also for what this process has drained itself: it may not know whether its last part has landed.
            self._spool.resume(positions)
        # Not the writing thread's: nothing there may be in use here.
        tracker = Tracker()
        drained = 0
        proven = False
        while not self._stopping.is_set():
            with self._mode:
                part = self._spool.next_part(BATCH_BYTES)
                if part and part.last and proven:
                    # More may come while it lands, and under load that would never end. The database has just shown
                    # that it takes parts, so the writing thread can wait for this one.
                    drained += self._land_part(connection, tracker, part, self._commit_seconds)
                    part = self._spool.next_part(BATCH_BYTES)
                if part is None:
                    self._connection = connection
                    self._wire = wire
                    self._tracker = tracker
                    self._spooling = False
                    metrics.database_up.set(1)
                    metrics.spool_bytes.set(0)
                    log.info("events go to the database", drained=drained)
                    return True
            drained += self._land_part(connection, tracker, part, _DRAIN_SECONDS)
            proven = True
        return False

    def _land_part(self, connection: psycopg.Connection, tracker: Tracker, part: Part, seconds: float) -> int:
        """Land a part of the spool and remember that, in one transaction; return how many events it had."""
        started = time.monotonic()
        with time_limit(connection, seconds), tracker.transaction(connection) as seen:
            landed = land_parts(connection, part.deliveries, seen)
            moved = connection.execute(_ADVANCE, {"segment": part.segment, "offset": part.offset, "end": part.end})
            if moved.rowcount != 1:
                raise LoaderError(f"Segment {part.segment} is being drained by somebody else.")
        _count(landed, time.monotonic() - started)
        with self._mode:
            self._spool.drained(part)
            metrics.spool_bytes.set(self._spool.size)
        return landed.rows


def describe(error: BaseException) -> str:
    """Return an error in one line, with its SQLSTATE; none of a row's content is in it."""
    if isinstance(error, psycopg.Error):
        return f"{error.sqlstate or 'connection lost'}: {error.diag.message_primary or type(error).__name__}"
    return " ".join(str(error).split())


def _count(landed: Landed, seconds: float) -> None:
    metrics.landed_events.inc(landed.rows)
    metrics.batch_events.observe(landed.rows)
    metrics.commit_seconds.observe(seconds)
    for reason, number in landed.reasons.items():
        metrics.quarantined.labels(reason).inc(number)
