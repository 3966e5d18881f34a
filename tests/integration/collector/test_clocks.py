"""`received_at` is the moment of receipt by the database's clock, however wrong the collector's clock is."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

import loader.postgres.warehouse
from loader.postgres.database import Database
from loader.postgres.warehouse import Warehouse
from loader.settings import Settings
from tests.support.collector_thread import Collecting, collecting
from tests.support.load import track
from tests.support.tcp_proxy import Proxy
from tests.support.waiting import wait_until

YEAR = timedelta(days=365)
# Half the duration of a measurement on a busy machine.
EXACT = timedelta(seconds=2)


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """Return a connection past the proxy."""
    with database.connect(autocommit=True) as opened:
        yield opened


@pytest.fixture
def beyond(settings: Settings, proxy: Proxy, tmp_path: Path) -> Settings:
    """Return the settings of a collector that reaches its database through the proxy."""
    return settings.model_copy(
        update={"database_url": proxy.url, "spool": tmp_path / "spool", "commit_seconds": 20.0, "processes": 1}
    )


@pytest.fixture
def a_year_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set this machine's clock a year ahead."""
    monkeypatch.setattr(loader.postgres.warehouse, "wall_clock", lambda: datetime.now(UTC) + YEAR)


def database_time(connection: psycopg.Connection) -> datetime:
    """Return the time by the database's clock."""
    row = connection.execute("select clock_timestamp()").fetchone()
    assert row
    return row[0]


def send(collector: Collecting, key: str, message_id: str, **properties: object) -> int:
    """Send one event, and return the status of the answer."""
    return collector.post("/v1/track", track(message_id, **properties), key=key).status


def writes_to(collector: Collecting) -> str | None:
    """Return the present destination of events."""
    return collector.get("/ready").json.get("writing_to")


def times(connection: psycopg.Connection) -> dict[str, datetime]:
    """Return the `received_at` of every event."""
    return dict(connection.execute("select message_id, received_at from raw.events").fetchall())


@pytest.mark.usefixtures("a_year_ahead")
def test_a11_each_landing_path_uses_the_databases_clock(
    beyond: Settings,
    proxy: Proxy,
    key: str,
    connection: psycopg.Connection,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """This holds for a connection, the thread, the spool and the quarantine. The difference is logged."""
    before = database_time(connection)
    with collecting(beyond) as collector:
        for number in range(60):
            assert send(collector, key, f"wire-{number}", n=1) == 200
        assert send(collector, key, "thread", new=1) == 200
        assert collector.post("/v1/track", {"event": "Email Opened"}, key=key).status == 400
        proxy.stop()
        assert send(collector, key, "spool", n=1) == 200
        after = database_time(connection)
        proxy.start()
        wait_until(lambda: writes_to(collector) == "database", "the spool to be replayed")
        metrics = collector.get("/metrics").body.decode()
    found = times(connection)
    assert len(found) == 62
    assert all(before - EXACT < moment < after + EXACT for moment in found.values())
    [(refused,)] = connection.execute("select received_at from raw.quarantine").fetchall()
    assert before - EXACT < refused < after + EXACT
    [offset] = [float(line.split()[1]) for line in metrics.splitlines() if line.startswith("loader_clock_offset_secon")]
    assert abs(offset + YEAR.total_seconds()) < EXACT.total_seconds()
    printed = capsys.readouterr()
    assert "clock and the database's differ" in printed.out + printed.err


@pytest.mark.usefixtures("a_year_ahead")
def test_a11_a_replay_corrects_times_of_an_unknown_clock(
    beyond: Settings,
    proxy: Proxy,
    key: str,
    connection: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A collector that has not reached its database since its start does not know the error of its clock."""
    monkeypatch.setattr("loader.collector.server._START_SECONDS", 0.1)
    with collecting(beyond) as collector:
        assert send(collector, key, "before") == 200
    proxy.stop()
    before = database_time(connection)
    with collecting(beyond) as collector:
        assert send(collector, key, "spooled") == 200
        after = database_time(connection)
        proxy.start()
        wait_until(lambda: writes_to(collector) == "database", "the spool to be replayed")
    assert before - EXACT < times(connection)["spooled"] < after + EXACT


def request(key: str, message_id: str, **properties: object) -> bytes:
    """Return a request as its bytes."""
    body = json.dumps(track(message_id, **properties)).encode()
    shown = b64encode(f"{key}:".encode())
    head = b"POST /v1/track HTTP/1.1\r\nHost: collector\r\nAuthorization: Basic %b\r\nContent-Length: %d\r\n\r\n"
    return head % (shown, len(body)) + body


# Usual events leave by an asynchronous connection, and unusual events leave by the thread.
def usual(_: str) -> dict[str, object]:
    """Return properties that have landed before."""
    return {"n": 1}


def unusual(name: str) -> dict[str, object]:
    """Return a property that is new to the registry."""
    return {f"new_{name}": 1}


@pytest.mark.parametrize("properties", [usual, unusual])
def test_a11_waiting_events_keep_their_time_of_receipt(
    beyond: Settings, key: str, connection: psycopg.Connection, properties: Callable[[str], dict[str, object]]
) -> None:
    """Events wait for a lock and share a commit. Each event keeps its time of receipt."""
    names = [f"e{number}" for number in range(8)]
    moments = []
    with collecting(beyond) as collector, ExitStack() as lines:
        for number in range(60):
            assert send(collector, key, f"wire-{number}", n=1) == 200
        with connection.transaction():
            connection.execute("lock table raw.events in access exclusive mode")
            waiting = []
            for name in names:
                waiting.append(lines.enter_context(collector.line()))
                waiting[-1].send(request(key, name, **properties(name)))
                # Earlier requests on other connections have been read by then.
                assert collector.get("/health").status == 200
                moments.append(database_time(connection))
        for line in waiting:
            assert line.reply().status == 200
    found = times(connection)
    assert [found[name] < moment for name, moment in zip(names, moments, strict=True)] == [True] * len(names)
    assert [found[name] > moment for name, moment in zip(names[1:], moments, strict=False)] == [True] * 7


def test_a11_clocks_that_agree_are_left_alone(connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement is as exact as its round trip. An offset within the round trip changes no time."""
    warehouse = Warehouse()
    for _ in range(20):
        warehouse.identify(connection)
        assert warehouse.is_measured
        assert warehouse.correct(datetime(2026, 3, 4, tzinfo=UTC)) == datetime(2026, 3, 4, tzinfo=UTC)
    with monkeypatch.context() as patched:
        patched.setattr(loader.postgres.warehouse, "wall_clock", lambda: datetime.now(UTC) - YEAR)
        warehouse.identify(connection)
        assert abs(warehouse.now() - database_time(connection)) < EXACT
    warehouse.identify(connection)
    assert abs(warehouse.now() - database_time(connection)) < EXACT
