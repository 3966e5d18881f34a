"""`loader schedule`: repeats the transform from a long-lived process.

Any number of schedulers may run, on any machines. The scheduler with the lock works, and the others stand by. It checks
for new events before it starts dbt, waits longer after each failure, and survives outages of the database. Runs of dbt
from cron or by hand stay safe beside it, because the snapshot cursors do not depend on the process that runs dbt.
"""

import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Sequence

import psycopg
from sqlalchemy.exc import DBAPIError

from loader.errors import LoaderError, UsageError, without_values
from loader.postgres.connection import apply_settings, set_session
from loader.postgres.database import open_database
from loader.postgres.lock_holders import name_lock_holders
from loader.runtime.terminal import count, shorten
from loader.settings import Settings
from loader.transform.dbt import TableFilled
from loader.transform.dbt_process import Runner

logger = logging.getLogger("loader")

BEAT_SECONDS = 3.0
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
# Old reports of runs are deleted. The last report of each table has the table's cursor. The last run that filled all
# tables has the cursor of all. A row without its report is compared without a lower bound, with the same result.
_FORGET_REPORTS = """
    delete from raw.syncs
    where
        started_at < clock_timestamp() - interval '90 days'
        and exists (
            select from raw.syncs as later
            where later.model = syncs.model and later.source = syncs.source and later.started_at > syncs.started_at
        )
"""
_FORGET_RUNS = """
    delete from raw.transforms
    where
        started_at < clock_timestamp() - interval '90 days'
        and finished_at is not null
        and not exists (select from raw.syncs where transform_id = transforms.id)
        and (
            not whole
            or exists (
                select from raw.transforms as later
                where later.whole and later.started_at > transforms.started_at
            )
        )
"""
# New events are few compared with all events. Outdated statistics must not lead to a scan of the whole table.
BY_INDEX = "set local enable_seqscan = off"
_SOURCES = "select exists (select from raw.sources)"
# Calls other than track count as well. They add no row, but a run moves the snapshot cursor past them, so that the next
# check does not find them again.
NEWS = """
    with done as materialized (
        select coalesce(
            (select transforms.snapshot from raw.transforms where whole order by transforms.started_at desc limit 1),
            '1:1:'
        )::pg_snapshot as snapshot
    )

    select
        exists (select from raw.events where load_xid >= (select pg_snapshot_xmax(snapshot) from done))
        or exists (select from raw.events where load_xid = any(array(select pg_snapshot_xip(snapshot) from done)))
"""
# Tables with work to do without new events: tables of a new source, dropped tables, tables to rebuild after
# `loader rescan`, held tables that are due again, and new tables that had to wait for the next hour.
_UNMADE = """
    select model, source
    from raw.cursors
    where snapshot is null or rebuild_ordered or to_regclass(format('%%I.%%I', source, model)) is null
    union
    select model, source from raw.held_tables where next_try_at <= clock_timestamp()
    union
    select 'tracks', schema_name
    from raw.sources
    where not exists (select from raw.cursors where source = schema_name and model = 'tracks')
    union
    select collection, schema_name
    from raw.sources
    cross join raw.collections_due(schema_name, '{}', %(tables)s, %(new_tables)s) as collection
"""


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
        self._failures = 0
        self._error: str | None = None
        self._unmade: set[tuple[str, str]] = set()
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
                except (LoaderError, psycopg.Error, DBAPIError) as error:
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
                self._say_once("there is no source yet: nothing to do until `loader source add Iterable`")
                self._recover()
            elif first or self._failures or self._has_news(connection):
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

    def _find_unmade(self, connection: psycopg.Connection) -> set[tuple[str, str]]:
        limits = {"tables": self._settings.tables, "new_tables": self._settings.new_tables}
        return {(model, source) for model, source in connection.execute(_UNMADE, limits).fetchall()}

    def _run_once(self, guard: psycopg.Connection, connection: psycopg.Connection) -> str | None:
        """Run the transform; return the reason of a failure, or None.

        Raises:
            psycopg.Error: The database does not answer any more, and the lock may be lost.
        """
        self._report(connection, "running")
        try:
            self._runner.start()
            while (filled := self._runner.finished(BEAT_SECONDS)) is None:
                self._beat(guard, connection, "running")
            error = _failed_tables(filled)
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
        if grown := [table for table in filled if table.rows > 0]:
            logger.info("%s in %s", count(_count_events(grown), "event"), count(len(grown), "table"))
        return None

    def _forget(self, connection: psycopg.Connection) -> None:
        if time.monotonic() >= self._forget_at:
            forget_old_runs(connection)
            self._forget_at = time.monotonic() + FORGET_SECONDS

    def _recover(self) -> None:
        if self._failures:
            logger.info("it works again; failed runs before: %d", self._failures)
        self._failures, self._error = 0, None

    def _fail(self, error: str) -> float:
        """Count and log a failure; return the seconds to wait before the next try."""
        self._error = error
        self._failures += 1
        # Half of the delay is random, so that many schedulers do not return to a database at the same time.
        delay = min(LIMIT_SECONDS, 2.0**self._failures) * random.uniform(0.5, 1)  # noqa: S311 - no secret
        if not self._stop.is_set():
            logger.warning("failure %d in a row, next try in %.0f s: %s", self._failures, delay, error)
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
        report = self._identity | {"every": self._every, "state": state, "failures": self._failures}
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
    return shorten(without_values(error.orig if isinstance(error, DBAPIError) else error), 500)


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
