"""`loader schedule`: repeats the transform from a long-lived process.

Any number of schedulers may run, on any machines. The scheduler with the lock works, and the others stand by. It checks
for new events before it starts dbt, waits longer after each failure, and survives outages of the database. Runs of dbt
from cron or by hand stay safe beside it, because the snapshot cursors do not depend on the process that runs dbt.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence

import psycopg

from loader.errors import LoaderError, UsageError, without_values
from loader.postgres.connection import apply_settings, set_session
from loader.postgres.database import open_database
from loader.postgres.lock_holders import name_lock_holders
from loader.postgres.statements import read_statement
from loader.runtime.backoff import Backoff
from loader.runtime.terminal import count, shorten
from loader.settings import Settings
from loader.transform.dbt import TableFilled
from loader.transform.dbt_process import Runner

logger = logging.getLogger("loader")

BEAT_SECONDS = 3.0
_FIRST_WAIT_SECONDS = 2.0
LIMIT_SECONDS = 60.0
FORGET_SECONDS = 3600.0

# The working scheduler holds this advisory lock. The lock belongs to a transaction, because a pooler may give a session
# to another client between two transactions. The transaction has no id and no snapshot, so it does not delay vacuum.
LOCK = 7_226_010_002
_TRY_LOCK = "select pg_try_advisory_xact_lock(%s)"
# The transaction stays open on purpose. With TCP's defaults, a vanished machine would hold the lock for two hours.
_LOCK_SETTINGS = {
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
_REPORT = """
    insert into raw.schedules (id, host, process_id, every, state, failures, last_error, next_run_at)
    values (
        %(id)s, %(host)s, %(process_id)s, make_interval(secs => %(every)s), %(state)s, %(failures)s, %(error)s,
        clock_timestamp() + make_interval(secs => %(next)s)
    )
    on conflict (id) do update set
        last_seen_at = clock_timestamp(),
        state = excluded.state,
        failures = excluded.failures,
        last_error = excluded.last_error,
        next_run_at = excluded.next_run_at
"""
_SUCCEEDED = "update raw.schedules set last_success_at = clock_timestamp() where id = %s"
_TIDY = "delete from raw.schedules where last_seen_at < clock_timestamp() - interval '1 hour'"
_LEAVE = "delete from raw.schedules where id = %s"
_FORGET_REPORTS = read_statement(__file__, "forget_reports")
_FORGET_RUNS = read_statement(__file__, "forget_runs")
# New events are few compared with all events. Outdated statistics must not lead to a scan of the whole table.
BY_INDEX = "set local enable_seqscan = off"
_SOURCES = "select exists (select from raw.sources)"
NEWS = read_statement(__file__, "news")
_UNMADE = read_statement(__file__, "unmade")


class Schedule:
    """The scheduler of one process, which repeats the transform.

    Args:
        settings: The process's settings, which name the database.
        every: Seconds from the end of a run, or of a check without new events, to the next check.
    """

    def __init__(self, settings: Settings, every: float) -> None:
        self._settings = settings
        self._every = every
        self._runner = Runner(settings)
        self._identity = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "process_id": os.getpid()}
        self._stop = threading.Event()
        self._backoff = Backoff(_FIRST_WAIT_SECONDS, LIMIT_SECONDS)
        self._error: str | None = None
        self._unmade: set[tuple[str, str]] = set()
        # The marts have a pace of their own, because a run that fills them takes several times as long.
        self._marts_due_at = 0.0
        self._marts_wait = False
        self._said = ""
        self._forget_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Repeat the transform until an event is set; a run in progress is finished first.

        Args:
            stop: The event, which another thread sets.

        Raises:
            UsageError: The settings contain no valid URL of a database.
        """
        self._stop = stop
        try:
            while not stop.is_set():
                try:
                    with (
                        open_database(self._settings) as database,
                        database.connect() as guard,
                        database.connect(autocommit=True) as connection,
                    ):
                        self._work(guard, connection)
                except UsageError:
                    raise
                except LoaderError as error:
                    # The lock may be lost, and another scheduler may run the transform too.
                    self._runner.close()
                    stop.wait(self._fail(reason(error)))
        finally:
            self._runner.close()

    def _work(self, guard: psycopg.Connection, connection: psycopg.Connection) -> None:
        """Wait for the scheduler's lock, then run the transform until the process is asked to stop.

        Raises:
            psycopg.Error: The database does not answer any more.
            DatabaseError: Another session holds a lock that the scheduler needs.
        """
        set_session(connection, self._settings.lock_wait)
        with name_lock_holders(connection, "The scheduler stopped"):
            if self._take_lock(guard, connection):
                self._lead(guard, connection)
        connection.execute(_LEAVE, [self._identity["id"]])

    def _take_lock(self, guard: psycopg.Connection, connection: psycopg.Connection) -> bool:
        """Wait until no other scheduler holds the lock; return False if the process is asked to stop before that."""
        apply_settings(guard, _LOCK_SETTINGS, for_transaction=True)
        while not self._stop.is_set():
            locked = guard.execute(_TRY_LOCK, [LOCK]).fetchone()
            if locked == (True,):
                self._say_once(f"at work: looking for new events every {self._every:g} s")
                connection.execute(_TIDY)
                return True
            self._say_once("another scheduler is at work; standing by to take over")
            self._report(connection, "standby")
            self._stop.wait(BEAT_SECONDS)
        return False

    def _lead(self, guard: psycopg.Connection, connection: psycopg.Connection) -> None:
        """Check for new events and run the transform, until the process is asked to stop."""
        # The first run needs no new events: the project may have been upgraded, or tables changed by hand.
        first = True
        while not self._stop.is_set():
            error = None
            if connection.execute(_SOURCES).fetchone() != (True,):
                self._say_once("there is no source yet; `loader source add Iterable` adds a source")
                self._recover()
            elif first or self._backoff.failures or self._has_news(connection) or self._are_marts_due():
                error = self._run_once(guard, connection)
                first = False
            self._forget(connection)
            if error:
                self._pause(guard, connection, "backing off", self._fail(error))
            else:
                self._pause(guard, connection, "idle", self._every)

    def _has_news(self, connection: psycopg.Connection) -> bool:
        """Return whether a run has work to do; the check reads only an index."""
        if self._find_unmade(connection) - self._unmade:
            return True
        with connection.transaction():
            connection.execute(BY_INDEX)
            return connection.execute(NEWS).fetchone() == (True,)

    def _are_marts_due(self) -> bool:
        """Return whether runs have left the marts behind the tables, and it is time to fill the marts."""
        return self._marts_wait and time.monotonic() >= self._marts_due_at

    def _find_unmade(self, connection: psycopg.Connection) -> set[tuple[str, str]]:
        limits = {"tables": self._settings.tables, "new_tables": self._settings.new_tables}
        return {(model, source) for model, source in connection.execute(_UNMADE, limits).fetchall()}

    def _run_once(self, guard: psycopg.Connection, connection: psycopg.Connection) -> str | None:
        """Run the transform; return the reason of a failure, or None.

        Raises:
            psycopg.Error: The database does not answer any more, and the lock may be lost.
        """
        self._report(connection, "running")
        with_marts = self._settings.marts and time.monotonic() >= self._marts_due_at
        try:
            self._runner.start(marts=with_marts)
            while (filled := self._runner.finished(BEAT_SECONDS)) is None:
                self._beat(guard, connection, "running")
            error = _failed_tables([table for table in filled if not table.is_mart])
        except LoaderError as failure:
            filled, error = [], reason(failure)
        # A lost database is the real failure then, and raises here. The run's error is only its consequence.
        self._beat(guard, connection, "running")
        if error:
            return error
        # Tables without a model stay in this set. Another run would not create them.
        self._unmade = self._find_unmade(connection)
        connection.execute(_SUCCEEDED, [self._identity["id"]])
        self._recover()
        for table in filled:
            if table.note:
                logger.warning(table.note)
        # A mart that fails keeps no collection from its events, so the next run comes as usual.
        failed_mart = _failed_tables([table for table in filled if table.is_mart])
        if failed_mart:
            logger.warning(failed_mart)
        if with_marts:
            self._marts_due_at = time.monotonic() + self._settings.marts_every
        self._marts_wait = failed_mart is not None if with_marts else self._settings.marts
        if grown := [table for table in filled if table.rows > 0]:
            logger.info("%s in %s", count(_count_events(grown), "event"), count(len(grown), "table"))
        return None

    def _forget(self, connection: psycopg.Connection) -> None:
        if time.monotonic() >= self._forget_at:
            forget_old_runs(connection)
            self._forget_at = time.monotonic() + FORGET_SECONDS

    def _recover(self) -> None:
        if self._backoff.failures:
            logger.info("the run succeeded; failed runs before: %d", self._backoff.failures)
        self._backoff.succeed()
        self._error = None

    def _fail(self, error: str) -> float:
        """Count and log a failure; return the seconds to wait before the next try."""
        self._error = error
        delay = self._backoff.fail()
        if not self._stop.is_set():
            logger.warning("failure %d in a row, next try in %.0f s: %s", self._backoff.failures, delay, error)
        return delay

    def _pause(self, guard: psycopg.Connection, connection: psycopg.Connection, state: str, seconds: float) -> None:
        """Wait, and report during the wait that this scheduler is alive."""
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            self._beat(guard, connection, state, left)
            self._stop.wait(min(left, BEAT_SECONDS))

    def _beat(
        self, guard: psycopg.Connection, connection: psycopg.Connection, state: str, left: float | None = None
    ) -> None:
        """Report that this scheduler is alive, and check the lock: the connection that holds it raises if lost."""
        guard.execute("select 1")
        self._report(connection, state, left)

    def _report(self, connection: psycopg.Connection, state: str, left: float | None = None) -> None:
        report = self._identity | {"every": self._every, "state": state, "failures": self._backoff.failures}
        connection.execute(_REPORT, report | {"error": self._error, "next": left})

    def _say_once(self, message: str) -> None:
        if message != self._said:
            logger.info(message)
        self._said = message


def forget_old_runs(connection: psycopg.Connection) -> None:
    """Delete the reports of runs older than 90 days, except those with the present cursors of tables.

    Args:
        connection: An open connection.

    Raises:
        psycopg.Error: The database does not answer.
    """
    with connection.transaction():
        connection.execute(_FORGET_REPORTS)
        connection.execute(_FORGET_RUNS)


def reason(error: Exception) -> str:
    """Return the reason of an error, in one line without values of events, e-mail addresses or keys."""
    return shorten(without_values(error), 500)


def _count_events(grown: Sequence[TableFilled]) -> int:
    """Return the number of new events; the table tracks has all events of a source, and other tables repeat them."""
    events = 0
    for source in {table.source for table in grown}:
        rows = {table.table: table.rows for table in grown if table.source == source}
        events += rows.get("tracks", sum(rows.values()))
    return events


def _failed_tables(filled: Sequence[TableFilled]) -> str | None:
    failed = [table for table in filled if table.error]
    if not failed:
        return None
    first = f"{failed[0].source}.{failed[0].table} was not filled: {reason(LoaderError(failed[0].error))}"
    return first if len(failed) == 1 else f"{first} (and {len(failed) - 1} more)"
