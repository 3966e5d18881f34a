"""`loader forward`: runs the deliveries of all destinations, each in a thread with its own connection.

Any number of workers may run, on any machines. Each destination has a lock, and the worker with the lock delivers. So
the order of the events and the pace of the requests need no agreement between processes.
"""

import math
import threading
from collections.abc import Sequence

import psycopg
import structlog

from loader.destinations.clock import Clock, SystemClock
from loader.destinations.delivery import Delivery
from loader.destinations.kinds import MakeReceiver, make_receiver
from loader.destinations.shared import Shared
from loader.errors import LoaderError, UsageError, without_values
from loader.postgres.connection import apply_settings, set_session
from loader.postgres.database import Database, open_database
from loader.raw.delivery_windows import MovedCursorError, list_replays
from loader.raw.destinations import find_destination, list_destinations
from loader.runtime.backoff import Backoff
from loader.settings import Settings

BEAT_SECONDS = 3.0
IDLE_SECONDS = 1.0

# A single round ends this long after the first failure: a person or a timer waits for its result.
ONCE_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0

# The lock of a destination is this number plus the destination's id. Like the scheduler's lock, it belongs to a
# transaction without an id and without a snapshot.
LOCK = 7_226_020_000_000
_TRY_LOCK = "select pg_try_advisory_xact_lock(%s)"
_LOCK_SETTINGS = {
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

log = structlog.get_logger("loader")


class Worker:
    """The worker of one process.

    Args:
        settings: The process's settings, which name the database.
        names: The destinations; empty for all, later ones too.
        once: End when nothing waits, or a minute after the first failure of each delivery.
        clock: The clock of the deliveries.
        make: Makes the receivers.
    """

    def __init__(
        self,
        settings: Settings,
        names: Sequence[str] = (),
        *,
        once: bool = False,
        clock: Clock | None = None,
        make: MakeReceiver = make_receiver,
    ) -> None:
        self._settings = settings
        self._names = names
        self._once = once
        self._clock = clock or SystemClock()
        self._make = make
        self._stop = threading.Event()
        self._backoff = Backoff(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)
        self._locked: set[int] = set()
        self._waiting_for: set[str] = set()
        self._threads: dict[tuple[int, int], threading.Thread] = {}
        self._shared: dict[int, Shared] = {}
        self._error: LoaderError | None = None

    def run(self, stop: threading.Event) -> None:
        """Deliver until an event is set; a request under way is answered first.

        Args:
            stop: The event, which another thread sets.

        Raises:
            UsageError: The settings contain no valid URL of a database, or there is no destination of a given name.
            LoaderError: In a single round, the database does not answer.
        """
        while not stop.is_set():
            try:
                with (
                    open_database(self._settings) as database,
                    database.connect() as guard,
                    database.connect(autocommit=True) as connection,
                ):
                    for name in self._names:
                        find_destination(connection, name)
                    self._lead(database, guard, connection, stop)
                    if self._error:
                        raise self._error
                    if self._once:
                        return
            except UsageError:
                raise
            except LoaderError as error:
                if self._once:
                    raise
                wait = self._backoff.fail()
                log.warning("the database is away", reason=without_values(error), next_try=round(wait))
                stop.wait(wait)

    def _lead(
        self, database: Database, guard: psycopg.Connection, connection: psycopg.Connection, stop: threading.Event
    ) -> None:
        """Start the deliveries whose locks are free, and watch the locks, until the process is asked to stop."""
        self._stop = threading.Event()
        self._locked, self._threads = set(), {}
        try:
            set_session(connection, self._settings.lock_wait)
            apply_settings(guard, _LOCK_SETTINGS, for_transaction=True)
            while not stop.is_set():
                # The connection that holds the locks raises if it is lost.
                guard.execute("select 1")
                self._start_deliveries(database, guard, connection)
                self._backoff.succeed()
                if self._once:
                    self._wait_for_end(guard, stop)
                    return
                stop.wait(BEAT_SECONDS)
        finally:
            self._stop.set()
            for thread in self._threads.values():
                thread.join()

    def _start_deliveries(self, database: Database, guard: psycopg.Connection, connection: psycopg.Connection) -> None:
        for destination in list_destinations(connection):
            if self._names and destination.name not in self._names:
                continue
            if destination.id not in self._locked and not self._take_lock(guard, destination.id, destination.name):
                continue
            for replay in [0, *list_replays(connection, destination.id)]:
                key = (destination.id, replay)
                if key not in self._threads or not self._threads[key].is_alive():
                    thread = threading.Thread(
                        target=self._deliver,
                        args=(database, guard, destination.name, *key),
                        name=f"loader-deliver-{destination.id}-{replay}",
                    )
                    self._threads[key] = thread
                    thread.start()

    def _take_lock(self, guard: psycopg.Connection, number: int, name: str) -> bool:
        if guard.execute(_TRY_LOCK, [LOCK + number]).fetchone() == (True,):
            self._locked.add(number)
            self._waiting_for.discard(name)
            log.info("delivering", destination=name)
            return True
        if name not in self._waiting_for:
            self._waiting_for.add(name)
            log.info("another worker delivers; standing by to take over", destination=name)
        return False

    def _wait_for_end(self, guard: psycopg.Connection, stop: threading.Event) -> None:
        while any(thread.is_alive() for thread in self._threads.values()):
            if stop.is_set():
                return
            guard.execute("select 1")
            for thread in self._threads.values():
                thread.join(BEAT_SECONDS / max(len(self._threads), 1))

    def _deliver(self, database: Database, guard: psycopg.Connection, name: str, number: int, replay: int) -> None:
        """Repeat the work of one delivery, with a new connection after each error."""
        backoff = Backoff(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)
        shared = self._shared.setdefault(number, Shared())
        give_up_at = math.inf
        while not self._stop.is_set():
            try:
                with database.connect(autocommit=True) as connection:
                    # A restart of the server ends the locks too. Another worker may deliver these events then.
                    guard.execute("select 1")
                    set_session(connection, self._settings.lock_wait)
                    delivery = Delivery(
                        connection,
                        number,
                        replay,
                        clock=self._clock,
                        stop=self._stop,
                        shared=shared,
                        patience_seconds=ONCE_SECONDS if self._once else math.inf,
                        make=self._make,
                    )
                    try:
                        if self._repeat(delivery, backoff):
                            return
                    finally:
                        delivery.close()
            except MovedCursorError:
                log.info("the cursor of a delivery was moved; it is read again")
                self._clock.wait(self._stop, IDLE_SECONDS)
            except Exception as error:
                # An error of the database, or a bug, must not stop the other deliveries.
                is_expected = isinstance(error, LoaderError | psycopg.Error)
                if not backoff.failures:
                    give_up_at = self._clock.seconds() + ONCE_SECONDS
                wait = backoff.fail()
                log.warning(
                    "a delivery failed",
                    destination=name,
                    reason=_reason(error),
                    next_try=round(wait),
                    exc_info=not is_expected,
                )
                if self._once and self._clock.seconds() + wait > give_up_at:
                    self._error = LoaderError(f"The delivery to {name} failed: {_reason(error)}")
                    return
                self._clock.wait(self._stop, wait)

    def _repeat(self, delivery: Delivery, backoff: Backoff) -> bool:
        """Deliver until the process stops; return whether the delivery has ended."""
        while not self._stop.is_set():
            has_worked = delivery.work()
            backoff.succeed()
            if not has_worked:
                if self._once or delivery.is_over:
                    return True
                self._clock.wait(self._stop, IDLE_SECONDS)
        return True


def _reason(error: Exception) -> str:
    """Return the reason of a failure without values of events."""
    if isinstance(error, LoaderError | psycopg.Error):
        return without_values(error)
    return f"internal error {type(error).__name__}"
