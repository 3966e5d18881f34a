"""The scheduler: its runs, and its behaviour when the processes around it fail."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import psycopg
import pytest

from loader.postgres.database import Database, connection_environment, open_database
from loader.postgres.embedded import EmbeddedServer
from loader.settings import Settings
from loader.transform.dbt import TableFilled
from loader.transform.scheduler import Schedule, forget_old_runs
from loader.transform.status import read_status
from tests.conftest import fast_folder, open_settings
from tests.support.dbt_runs import AS_PARSED, parse_once, parsed, run, started, succeed
from tests.support.factories import insert_event
from tests.support.tcp_proxy import Proxy, proxied
from tests.support.waiting import wait_until

DBT = "select count(*) from pg_stat_activity where application_name = 'dbt' and datname = current_database()"


@contextmanager
def scheduled(settings: Settings, every: float = 0.1) -> Iterator[None]:
    """Run a scheduler in this process for the length of a block."""
    stop = threading.Event()
    thread = threading.Thread(target=Schedule(settings, every).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the schedulers of this process try again at once after a failure."""
    monkeypatch.setattr("loader.transform.scheduler._FIRST_WAIT_SECONDS", 0.2)
    monkeypatch.setattr("loader.transform.scheduler.LIMIT_SECONDS", 0.5)


def start(settings: Settings) -> subprocess.Popen[str]:
    """Start `loader schedule` as a service manager does."""
    environment = os.environ | {"DATABASE_URL": settings.database_url, "LOADER_HOME": str(settings.home)}
    # Not in this folder, because its package would come before the package in the path.
    command = [sys.executable, "-P", "-m", "loader", "schedule", "--every", "0.1s"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection for checks."""
    with small.connect(autocommit=True) as opened:
        yield opened


def value(connection: psycopg.Connection, query: str) -> object:
    """Return the first value of a query's result."""
    row = connection.execute(query).fetchone()
    return row and row[0]


def ids(connection: psycopg.Connection) -> list[str]:
    """Return the ids of the served events of one kind."""
    return [row[0] for row in connection.execute("select id from iterable.email_opened order by id").fetchall()]


def runs(connection: psycopg.Connection) -> object:
    """Return the number of runs."""
    return value(connection, "select count(*) from raw.transforms")


def await_state(connection: psycopg.Connection, state: str, process: int | None = None) -> None:
    """Wait until a scheduler is in a state."""
    query = f"select exists (select from raw.schedules where state = '{state}'"
    query += f" and process_id = {process})" if process else ")"
    wait_until(lambda: value(connection, query) is True, f"a scheduler that is {state}")


def await_looks(connection: psycopg.Connection, number: int) -> None:
    """Wait until the scheduler has checked for new events a few times; it reports each time."""
    seen = set()
    latest = "select max(last_seen_at) from raw.schedules"
    wait_until(lambda: seen.add(value(connection, latest)) or len(seen) > number, "looks for news")


def test_the_scheduler_runs_only_for_new_events_and_sources(
    small_settings: Settings, connection: psycopg.Connection
) -> None:
    """It runs once at its start, then only for events and new sources. At its end it removes its row."""
    before = runs(connection)
    assert isinstance(before, int)
    with scheduled(small_settings):
        await_state(connection, "idle")
        assert runs(connection) == before + 1
        insert_event(connection, "email_opened", "a")
        wait_until(lambda: ids(connection) == ["a"], "the event in its table")
        await_state(connection, "idle")
        counted = runs(connection)
        await_looks(connection, 5)
        assert runs(connection) == counted
        connection.execute("insert into raw.sources (name, schema_name) values ('Other', 'other')")
        wait_until(lambda: value(connection, "select to_regclass('other.tracks')") is not None, "the source's tables")
    assert value(connection, "select count(*) from raw.schedules") == 0


class RecordedRunner:
    """Stands in for dbt: notes whether a run fills the marts, and records the run as one that filled all tables."""

    marts: ClassVar[list[bool]] = []
    fails: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database_url

    def start(self, *, marts: bool) -> None:
        """Record a run."""
        with psycopg.connect(self._url) as connection:
            connection.execute(
                "insert into raw.transforms (id, snapshot, finished_at, whole) values"
                " (gen_random_uuid()::text, pg_current_snapshot(), now(), true)"
            )
        self.marts.append(marts)

    def finished(self, _: float) -> list[TableFilled]:
        """Return the result of a run: a mart that failed, if there is one."""
        failed = self.fails and self.marts[-1]
        return [TableFilled("iterable_marts", "messages", error="no rows today", is_mart=True)] if failed else []

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("fails", [False, True])
def test_the_marts_run_at_their_own_interval(
    small_settings: Settings, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """Runs between fill the tables alone. After an hour, a run fills the marts without new events."""
    hours = [0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * hours[0])
    monkeypatch.setattr("loader.transform.scheduler.time", clock)
    monkeypatch.setattr("loader.transform.scheduler.Runner", RecordedRunner)
    monkeypatch.setattr(RecordedRunner, "fails", fails)
    runs = RecordedRunner.marts
    runs.clear()
    with scheduled(small_settings.model_copy(update={"marts": True, "marts_every": 3600.0})):
        wait_until(lambda: runs == [True], "the first run, with marts")
        insert_event(connection, "email_opened", "a")
        wait_until(lambda: runs == [True, False], "a run of the tables alone")
        await_looks(connection, 3)
        hours[0] += 1
        wait_until(lambda: runs == [True, False, True], "a run with marts")
        await_looks(connection, 3)
        hours[0] += 1
        if fails:
            wait_until(lambda: runs == [True, False, True, True], "another run of the failed mart")
        await_looks(connection, 3)
        assert runs == [True, False, True, True][: 4 if fails else 3]


def test_dbt_from_cron_beside_a_scheduler_is_safe(
    small_settings: Settings, connection: psycopg.Connection, small_project: Path
) -> None:
    """Plain `dbt run`, with only the connection set, fills the same tables, and neither affects the other."""
    folder = parsed(small_settings)
    command = [sys.executable, "-m", "dbt.cli.main", "--quiet", "run", "--target-path", str(folder / "target")]
    command += ["--log-path", str(folder / "logs")]
    environment = AS_PARSED | connection_environment(small_settings.database_url)
    with scheduled(small_settings):
        await_state(connection, "idle")
        before = runs(connection)
        with started(command, environment, small_project) as built:
            wait_until(lambda: runs(connection) != before, "the run from cron")
            insert_event(connection, "email_opened", "a")
            wait_until(lambda: ids(connection) == ["a"], "the event in its table")
            insert_event(connection, "email_opened", "b")
            succeed(built)
        law = "select in_collections, duplicates, missing_in_collections, missing_in_tracks from raw.conservation"
        wait_until(lambda: connection.execute(law).fetchone() == (2, 0, 0, 0), "every event in both its tables")


def test_a_second_scheduler_takes_over_when_the_first_is_killed(
    small_settings: Settings, connection: psycopg.Connection
) -> None:
    """Two runs never overlap. After kill -9 the next scheduler takes over, and the killed one is shown as dead."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(start(small_settings)) for _ in range(2))
        try:
            await_state(connection, "standby")
            await_state(connection, "idle")
            working = value(connection, "select process_id from raw.schedules where state = 'idle'")
            killed, left = (first, second) if working == first.pid else (second, first)
            assert working == killed.pid
            insert_event(connection, "email_opened", "a")
            wait_until(lambda: ids(connection) == ["a"], "the event in its table")
            killed.kill()
            await_state(connection, "idle", left.pid)
            insert_event(connection, "email_opened", "b")
            wait_until(lambda: ids(connection) == ["a", "b"], "the event in its table")
            connection.execute(
                "update raw.schedules set last_seen_at = last_seen_at - interval '1 minute' where process_id = %s",
                (killed.pid,),
            )
            with open_database(small_settings) as database, database.begin() as transaction:
                alive = {row["process_id"]: row["alive"] for row in read_status(transaction).schedulers}
            assert alive == {killed.pid: False, left.pid: True}
        finally:
            first.kill()
            second.kill()
    overlapping = """
        select count(*)
        from raw.transforms as one
        inner join raw.transforms as other on one.id < other.id
        where one.started_at < other.finished_at and other.started_at < one.finished_at
    """
    assert value(connection, overlapping) == 0


def test_old_reports_of_runs_are_removed_except_the_last_of_each_table(connection: psycopg.Connection) -> None:
    """The last report and run of each table stay, and so does the last run that filled every table."""
    latest = set(connection.execute("select model, transform_id from raw.syncs").fetchall())
    [(whole,)] = connection.execute("select id from raw.transforms where whole").fetchall()
    connection.execute("update raw.syncs set started_at = started_at - interval '91 days'")
    connection.execute("update raw.transforms set started_at = started_at - interval '91 days'")
    connection.execute("""
        insert into raw.transforms (id, snapshot, started_at, finished_at, whole)
        select name, pg_current_snapshot(), now() - age, now(), name = 'whole'
        from (
            values
            ('whole', interval '200 days'), ('part', interval '100 days'), ('reported', interval '100 days'),
            ('recent', interval '89 days')
        ) as runs (name, age)
    """)
    connection.execute("""
        insert into raw.syncs
            (transform_id, model, source, full_refresh, read_rows, table_rows, last_seq, started_at, duration)
        values
            ('reported', 'tracks', 'iterable', false, 1, 1, 1, now() - interval '100 days', '1 s'),
            ('recent', 'idle', 'iterable', false, 1, 1, 1, now() - interval '89 days', '1 s')
    """)
    forget_old_runs(connection)
    left = set(connection.execute("select model, transform_id from raw.syncs").fetchall())
    assert left == latest | {("idle", "recent")}
    assert {row[0] for row in connection.execute("select id from raw.transforms").fetchall()} == {whole, "recent"}


@contextmanager
def held_event(connection: psycopg.Connection, message_id: str) -> Iterator[psycopg.Connection]:
    """Land an event whose run has to wait; yield the connection that holds the lock."""
    with psycopg.connect(connection.info.dsn, password=connection.info.password) as holder:
        holder.execute("select from raw.cursors where model = 'email_opened' for update")
        insert_event(connection, "email_opened", message_id)
        yield holder


def await_held_run(connection: psycopg.Connection) -> None:
    """Wait for a run that waits for the lock."""
    wait_until(lambda: value(connection, f"{DBT} and wait_event_type = 'Lock'") == 1, "a run that waits")


@contextmanager
def held_run(
    connection: psycopg.Connection, settings: Settings
) -> Iterator[tuple[subprocess.Popen[str], psycopg.Connection]]:
    """Start a scheduler whose first run has an event to add, and waits for the connection's lock."""
    with held_event(connection, "a") as holder, start(settings) as process:
        try:
            await_held_run(connection)
            yield process, holder
        finally:
            process.kill()


def await_line(process: subprocess.Popen[str], part: str) -> None:
    """Read the output of a process up to a given line."""
    assert process.stderr is not None
    assert any(part in line for line in process.stderr), f"it never said: {part}"


def test_a_signal_lets_the_run_finish(small_settings: Settings, connection: psycopg.Connection) -> None:
    """The run ends as without the signal, and then the process ends."""
    with held_run(connection, small_settings) as (process, holder):
        process.send_signal(signal.SIGTERM)
        await_line(process, "stopping after the run under way")
        assert process.poll() is None
        holder.rollback()
        assert process.wait(60) == 0
    assert ids(connection) == ["a"]
    assert value(connection, "select status from raw.transforms order by started_at desc limit 1") == "success"
    assert value(connection, "select count(*) from raw.schedules") == 0


def test_a_second_signal_ends_the_scheduler_at_once(
    small: Database, small_settings: Settings, connection: psycopg.Connection
) -> None:
    """The exit code shows the signal, dbt has ended, and no work is half done."""
    with held_run(connection, small_settings) as (process, holder):
        process.send_signal(signal.SIGINT)
        await_line(process, "stopping after the run under way")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        holder.rollback()
    wait_until(lambda: value(connection, DBT) == 0, "the run's connections to end")
    assert ids(connection) == []
    run(small, small_settings, "email_opened")
    assert ids(connection) == ["a"]


def test_a_failing_table_is_tried_again_ever_later_until_it_works(
    small_settings: Settings,
    connection: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Status and log give the reason and the next try once for each failure, and report the success."""
    monkeypatch.setattr("loader.transform.scheduler._FIRST_WAIT_SECONDS", 0.5)
    caplog.set_level(logging.INFO, "loader")
    column = "alter table iterable.email_opened alter column campaign_id type {0} using null::{0}"
    with scheduled(small_settings):
        await_state(connection, "idle")
        connection.execute(column.format("integer[]"))
        insert_event(connection, "email_opened", "a")
        failed_again = "select failures >= 2 and state = 'backing off' from raw.schedules"
        wait_until(lambda: value(connection, failed_again), "a second failure")
        with open_database(small_settings) as database, database.begin() as transaction:
            [shown] = read_status(transaction).schedulers
        assert shown["failures"] >= 2
        assert shown["next_run_at"] is not None
        assert "iterable.email_opened was not filled" in shown["last_error"]
        connection.execute(column.format("bigint"))
        wait_until(lambda: ids(connection) == ["a"], "the event in its table")
        await_state(connection, "idle")
        assert value(connection, "select failures from raw.schedules") == 0
    failures = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [message.split(",")[0] for message in failures] == [
        f"failure {n + 1} in a row" for n in range(len(failures))
    ]
    assert all("next try in" in message for message in failures)
    assert f"the run succeeded; failed runs before: {len(failures)}" in caplog.messages


def await_failures(log: pytest.LogCaptureFixture) -> None:
    """Wait until the scheduler has reported two failures in a row."""
    wait_until(lambda: "failure 2 in a row" in log.text, "a second failure")


def await_event(connection: psycopg.Connection) -> None:
    """Land an event, and wait until the scheduler has put the event into its table."""
    insert_event(connection, "email_opened", "a")
    wait_until(lambda: ids(connection) == ["a"], "the event in its table")
    await_state(connection, "idle")


def through(settings: Settings, proxy: Proxy) -> Settings:
    """Return settings whose connections pass a proxy."""
    return settings.model_copy(update={"database_url": proxy.url})


def assert_recovery(messages: list[str]) -> None:
    """Check that the scheduler has reported its recovery, and no password."""
    assert any(message.startswith("the run succeeded") for message in messages)
    assert not any("loader:" in message for message in messages), "a password"


def test_the_scheduler_survives_an_outage_of_the_database(
    small_settings: Settings,
    connection: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the database is away, the scheduler tries again. When the database is back, runs continue."""
    shorten_pauses(monkeypatch)
    caplog.set_level(logging.INFO, "loader")
    with proxied(small_settings.database_url) as proxy, scheduled(through(small_settings, proxy)):
        await_state(connection, "idle")
        proxy.stop()
        await_failures(caplog)
        proxy.start()
        await_event(connection)
    assert_recovery(caplog.messages)


@pytest.mark.heavy
def test_the_scheduler_survives_a_restart_of_the_database(
    small_project: Path, small_template: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that restarts under the scheduler is such an outage."""
    caplog.set_level(logging.INFO, "loader")
    with tempfile.TemporaryDirectory(prefix="loader-schedule-", dir=fast_folder()) as folder:
        Path(folder).chmod(0o755)
        server = EmbeddedServer(Path(folder), idle=60)
        try:
            settings = open_settings(server.acquire(), small_template.home / "restarted")
            with open_database(settings, migrate_behind=True) as database, database.connect(autocommit=True) as opened:
                opened.execute("insert into raw.sources (name, schema_name) values ('Iterable', 'iterable')")
            parse_once(settings)
            with scheduled(settings):
                with psycopg.connect(settings.database_url, autocommit=True) as opened:
                    await_state(opened, "idle")
                server.stop()
                await_failures(caplog)
                assert server.acquire() == settings.database_url
                with psycopg.connect(settings.database_url, autocommit=True) as opened:
                    await_event(opened)
        finally:
            server.stop()
    assert_recovery(caplog.messages)
