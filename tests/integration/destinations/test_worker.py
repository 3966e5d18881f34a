"""The worker of `loader forward`: locks, single rounds, stops, and a database that comes and goes."""

import os
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import structlog.testing

from loader.destinations.kinds import make_receiver
from loader.destinations.worker import Worker
from loader.errors import LoaderError
from loader.raw.destinations import (
    Destination,
    add_destination,
    find_destination,
    remove_destination,
    resume_destination,
)
from loader.settings import Settings
from tests.support.deliveries import (
    add_segment,
    conserved,
    fill_tracks,
    ids,
    land_many,
    land_numbers,
    new_destination,
)
from tests.support.delivery_workers import END_CONNECTIONS, start_worker, working
from tests.support.receivers import Received, Receiver, Respond, receiving
from tests.support.tcp_proxy import Proxy
from tests.support.waiting import wait_until


def test_a_worker_delivers_events_as_they_come(
    settings: Settings, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A destination that is added later is delivered too, and a removed one no more."""
    add_segment(connection, receiver)
    with working(settings), receiving() as other:
        land_many(connection, ids(10))
        fill_tracks(connection)
        wait_until(lambda: receiver.taken_ids == ids(10), "the first events")
        add_destination(connection, "later", "webhook", {"url": other.url}, {}, from_start=True)
        wait_until(lambda: other.taken_ids == ids(10), "the later destination")
        remove_destination(connection, find_destination(connection, "cdp").id)
        land_many(connection, ids(10, 10))
        fill_tracks(connection)
        wait_until(lambda: other.taken_ids == ids(20), "further events")
    assert receiver.taken_ids == ids(10)


def test_of_two_workers_one_delivers_and_the_other_takes_over(
    settings: Settings, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Nothing is sent twice while both run."""
    add_segment(connection, receiver, batch=1)
    with working(settings) as first:
        land_many(connection, ids(5))
        fill_tracks(connection)
        wait_until(lambda: len(receiver.taken) == 5, "the first worker")
        with working(settings):
            land_many(connection, ids(5, 5))
            fill_tracks(connection)
            wait_until(lambda: len(receiver.taken) == 10, "the first worker beside the second")
            first.set()
            land_many(connection, ids(5, 10))
            fill_tracks(connection)
            wait_until(lambda: len(receiver.taken) == 15, "the second worker")
    assert receiver.taken_ids == ids(15)


def test_one_round_delivers_all_that_waits_and_ends(
    settings: Settings, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """`--once` of one destination leaves the others alone."""
    add_segment(connection, receiver)
    new_destination(connection, "webhook", name="other", url="http://127.0.0.1:9")
    land_many(connection, ids(120))
    fill_tracks(connection)
    Worker(settings, ["cdp"], once=True).run(threading.Event())
    assert receiver.taken_ids == ids(120)
    assert find_destination(connection, "other").requests == {}


def test_an_error_of_the_program_stops_one_delivery_and_no_other(
    settings: Settings, connection: psycopg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single round ends with it, and with the events of the other destinations delivered."""

    def make(destination: Destination, *rest: Any) -> Any:
        if destination.name == "broken":
            raise ZeroDivisionError("the value of an event")
        return make_receiver(destination, *rest)

    monkeypatch.setattr("loader.destinations.worker.ONCE_SECONDS", 0.0)
    add_segment(connection, receiver)
    new_destination(connection, "webhook", name="broken", url=receiver.url)
    land_many(connection, ids(5))
    fill_tracks(connection)
    with pytest.raises(LoaderError) as caught:
        Worker(settings, once=True, make=make).run(threading.Event())
    assert str(caught.value) == "The delivery to broken failed: internal error ZeroDivisionError"
    assert receiver.taken_ids == ids(5)


def test_a_worker_survives_a_lost_database(
    settings: Settings, connection: psycopg.Connection, receiver: Receiver, proxy: Proxy
) -> None:
    """The cut of every connection repeats one batch at most."""
    add_segment(connection, receiver, batch=10)
    with working(settings.model_copy(update={"database_url": proxy.url})):
        land_many(connection, ids(50))
        fill_tracks(connection)
        wait_until(lambda: len(receiver.requests) >= 2, "the first batches")
        proxy.drop()
        land_many(connection, ids(50, 50))
        fill_tracks(connection)
        wait_until(lambda: set(receiver.taken_ids) == set(ids(100)), "all events")
    assert len(receiver.taken) <= 110
    wait_until(lambda: conserved(connection)["delivered"] == 100, "the last commit")


def test_a_worker_that_has_lost_the_lock_delivers_nothing(
    settings: Settings, connection: psycopg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of the server another worker may have the lock, long before the first one looks at the lock."""
    monkeypatch.setattr("loader.destinations.worker.BEAT_SECONDS", 3600.0)
    monkeypatch.setattr("loader.destinations.worker._FIRST_WAIT_SECONDS", 0.01)
    add_segment(connection, receiver, batch=10)
    land_many(connection, ids(50))
    fill_tracks(connection)

    def answer(_: Received) -> Respond:
        if len(receiver.requests) == 2:
            connection.execute(END_CONNECTIONS)
        return Respond()

    receiver.answer = answer
    with structlog.testing.capture_logs() as logs, working(settings):

        def has_failed_often() -> bool:
            return [entry["event"] for entry in logs].count("a delivery failed") >= 3

        wait_until(lambda: has_failed_often() or len(receiver.requests) > 2, "the first worker without the lock")
        assert len(receiver.requests) == 2
        with working(settings):
            wait_until(lambda: len(set(receiver.taken_ids)) == 50, "the second worker")
    assert receiver.taken_ids == [*ids(20), *ids(40, 10)]


def test_a_stopped_worker_finishes_its_request_and_ends_its_waits(
    settings: Settings, connection: psycopg.Connection, receiver: Receiver, tmp_path: Path
) -> None:
    """SIGTERM ends a wait of minutes at once, with exit code 0."""
    add_segment(connection, receiver)
    land_many(connection, ids(5))
    fill_tracks(connection)
    receiver.answer = lambda _: Respond(429, headers={"Retry-After": "3000"})
    process = start_worker(settings, tmp_path / "log")
    wait_until(lambda: find_destination(connection, "cdp").state == "failing", "the wait")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert os.environ["DESTINATION_KEY"] not in (tmp_path / "log").read_text()


@pytest.mark.soak
def test_a_long_queue_takes_no_more_memory_than_a_short_one(
    settings: Settings,
    connection: psycopg.Connection,
    receiver: Receiver,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The receiver is away while 300,000 events land, and gets all of them afterwards, the oldest first."""
    found = add_segment(connection, receiver)
    process = start_worker(settings, tmp_path / "log")
    is_away = False
    megabytes: list[float] = []
    order: list[str] = []

    def answer(request: Received) -> Respond:
        megabytes.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        # The test must not run out of memory itself.
        del receiver.requests[:], receiver.taken[:]
        if is_away:
            return Respond(503)
        order.extend(request.ids)
        return Respond()

    def land(start: int) -> float:
        """Land some events; return the seconds that this took."""
        begin = time.monotonic()
        land_numbers(connection, 10_000, start=start)
        seconds = time.monotonic() - begin
        fill_tracks(connection)
        return seconds

    receiver.answer = answer
    land(0)
    wait_until(lambda: len(order) == 10_000, "the short queue")
    short = max(megabytes)
    process.send_signal(signal.SIGSTOP)
    without = [land(10_000 + 10_000 * n) for n in range(14)]
    is_away = True
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: find_destination(connection, "cdp").state == "failing", "the outage")
    beside = [land(150_000 + 10_000 * n) for n in range(15)]
    is_away = False
    resume_destination(connection, found.id)
    wait_until(lambda: len(order) == 300_000, "the long queue")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert order == ids(300_000)
    with capsys.disabled():
        ratio = statistics.median(beside) / statistics.median(without)
        print(f"\nshort queue {short:.0f} MB, long queue {max(megabytes):.0f} MB; landing took {ratio:.2f}")  # noqa: T201
    assert max(megabytes) < short + 50
