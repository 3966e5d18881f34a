"""Signals to `loader serve`, and ends of its processes: a request is answered after its commit, or not at all."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from tests.support.collector_process import serving
from tests.support.load import assert_landed, load, wait_until_replayed
from tests.support.tcp_proxy import proxied
from tests.support.waiting import wait_until

SOME = 20


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """Return a connection to the test's database."""
    with database.connect(autocommit=True) as opened:
        yield opened


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    """Return settings with a spool of the test."""
    return settings.model_copy(update={"spool": tmp_path / "spool"})


@pytest.mark.parametrize("arguments", [(), ("--processes=2",)], ids=["alone", "supervised"])
def test_a_signal_stops_the_collector_in_order(
    own: Settings, tmp_path: Path, key: str, connection: psycopg.Connection, arguments: tuple[str, ...]
) -> None:
    """SIGTERM comes under load. Every answer was a 200 whose events have landed, and the exit code is 0."""
    with serving(own, tmp_path, *arguments, names=("spool",)) as collector, load(collector.port, key) as sent:
        sent.wait_for(SOME)
        collector.signal(signal.SIGTERM)
        assert collector.wait() == 0
        sent.stop()
    assert sent.statuses.keys() <= {200, 0}
    assert_landed(connection, sent)
    assert list(tmp_path.glob("spool/*.segment")) == []


def test_a_second_signal_ends_the_collector_at_once(settings: Settings, tmp_path: Path, key: str) -> None:
    """Requests under way get no answer, so no 200 is given for a lost event."""
    with proxied(settings.database_url) as proxy:
        own = settings.model_copy(
            update={"database_url": proxy.url, "spool": tmp_path / "spool", "commit_seconds": 100.0}
        )
        collecting = serving(own, tmp_path, names=("spool", "commit_seconds"))
        with collecting as collector, load(collector.port, key) as sent:
            sent.wait_for(SOME)
            proxy.deafen()
            collector.signal(signal.SIGTERM)
            wait_until(lambda: not is_listening(collector.port), "the port to be closed")
            collector.signal(signal.SIGTERM)
            assert collector.wait() == 128 + signal.SIGTERM
            sent.stop()
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            assert_landed(connection, sent)


def is_listening(port: int) -> bool:
    """Return whether a process accepts connections on a port."""
    return any(each.laddr.port == port and each.status == psutil.CONN_LISTEN for each in psutil.net_connections("tcp"))


def test_a_killed_process_of_several_is_started_again(
    own: Settings, tmp_path: Path, key: str, connection: psycopg.Connection
) -> None:
    """The others continue to answer, and the events in the killed process's spool land."""
    serve = serving(own, tmp_path, "--processes=2", names=("spool",))
    with serve as collector, load(collector.port, key) as sent:
        wait_until(lambda: len(collector.children()) == 2, "two processes")
        killed = collector.children()[0]
        sent.wait_for(SOME)
        killed.kill()
        wait_until(lambda: killed not in collector.children(), "the process to be gone")
        sent.wait_for(SOME)
        wait_until(lambda: len(collector.children()) == 2, "another process in its place")
        sent.wait_for(SOME)
        sent.stop()
        wait_until_replayed(connection, sent)
    assert_landed(connection, sent)


def test_processes_end_with_their_supervisor(
    own: Settings, tmp_path: Path, key: str, connection: psycopg.Connection
) -> None:
    """After `kill -9` of the supervisor, no process listens on the port, and every landed request has its answer."""
    serve = serving(own, tmp_path, "--processes=2", names=("spool",))
    with serve as collector, load(collector.port, key) as sent:
        wait_until(lambda: len(collector.children()) == 2, "two processes")
        processes = collector.children()
        sent.wait_for(SOME)
        collector.signal(signal.SIGKILL)
        wait_until(lambda: not any(each.is_running() for each in processes), "the processes to end")
        sent.stop()
    assert sent.statuses.keys() <= {200, 0}
    assert_landed(connection, sent)
