"""The worker of `loader forward`: locks, kills, replays, and a database that comes and goes."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader.destinations.kinds import make_receiver
from loader.destinations.worker import Worker
from loader.errors import LoaderError
from loader.postgres.database import Database
from loader.raw.delivery_windows import add_replay
from loader.raw.destinations import (
    Destination,
    add_destination,
    find_destination,
    read_progress,
    remove_destination,
)
from loader.settings import Settings
from tests.support.collector_process import environment
from tests.support.deliveries import add_segment, conserved, deliver, fill_tracks, ids, land_many, new_destination
from tests.support.receivers import LOST, Received, Receiver, Respond, receiving
from tests.support.tcp_proxy import Proxy
from tests.support.waiting import wait_until


@contextmanager
def working(settings: Settings, *names: str) -> Iterator[threading.Event]:
    """Run a worker in a thread until the end of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=Worker(settings, names).run, args=(stop,))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def start_worker(settings: Settings, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `loader forward` as a process."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "loader", "forward", *arguments], env=environment(settings, ()), stderr=stream
        )


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


# As a restart of the server does.
_END_CONNECTIONS = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""


class Disturbance:
    """Rounds in which workers are killed, connections are cut, and answers are lost or refused, all at random.

    Attributes:
        landed: Number of events that landed.
        most_repeated: Largest number of events that the receiver may have got twice.
    """

    def __init__(self, settings: Settings, receiver: Receiver, proxy: Proxy, log: Path, seed: int) -> None:
        self._settings = settings.model_copy(update={"database_url": proxy.url})
        self._receiver = receiver
        self._proxy = proxy
        self._log = log
        self._chance = random.Random(seed)
        self.landed = 0
        self.most_repeated = 0
        receiver.answer = self._answer

    def run(self, connection: psycopg.Connection, rounds: int) -> None:
        """Land events and disturb their delivery."""
        for _ in range(rounds):
            land_many(connection, ids(60, self.landed))
            self.landed += 60
            fill_tracks(connection)
            workers = [start_worker(self._settings, self._log) for _ in range(self._chance.choice([1, 1, 1, 2]))]
            self._wait_for_requests(self._chance.randint(1, 7))
            if self._chance.random() < 0.2:
                self._chance.choice([self._proxy.drop, lambda: connection.execute(_END_CONNECTIONS)])()
                self.most_repeated += 10
                self._wait_for_requests(1)
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
                self.most_repeated += 10
            for worker in workers:
                worker.wait()

    def _wait_for_requests(self, number: int) -> None:
        enough = len(self._receiver.requests) + number
        wait_until(lambda: len(self._receiver.requests) >= enough, "requests to kill at")

    def _answer(self, _: Received) -> Respond:
        if self._chance.random() < 0.1:
            self.most_repeated += 10
            return LOST
        refusals = [Respond(503), Respond(429), Respond(429, headers={"Retry-After": "1"})]
        return self._chance.choice([*[Respond()] * 12, *refusals])


@pytest.mark.parametrize("rounds", [4, pytest.param(200, marks=pytest.mark.soak)])
def test_kills_and_lost_answers_lose_nothing_and_repeat_one_batch_each(  # noqa: PLR0917 - fixtures
    settings: Settings, connection: psycopg.Connection, receiver: Receiver, proxy: Proxy, tmp_path: Path, rounds: int
) -> None:
    """Without the ids, the receiver has at most one batch twice for each kill, lost connection and lost answer."""
    add_segment(connection, receiver, batch=10)
    disturbance = Disturbance(settings, receiver, proxy, tmp_path / "log", rounds)
    disturbance.run(connection, rounds)
    receiver.answer = lambda _: Respond()
    Worker(settings, once=True).run(threading.Event())
    assert list(dict.fromkeys(receiver.taken_ids)) == ids(disturbance.landed)
    assert len(receiver.taken) - disturbance.landed <= disturbance.most_repeated
    assert conserved(connection)["delivered"] == disturbance.landed


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


def test_a_replay_runs_beside_the_live_delivery(
    database: Database, settings: Settings, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """It sends the events of its time again, and ends where the live delivery was."""
    add_segment(connection, receiver)
    land_many(connection, ids(30))
    connection.execute("update raw.events set received_at = received_at - seq * interval '1 day'")
    fill_tracks(connection)
    deliver(database)
    found = find_destination(connection, "cdp")
    until = datetime.now(UTC) - timedelta(days=9, hours=12)
    since = until - timedelta(days=10)
    number = add_replay(connection, found.id, [], {"since": since.isoformat(), "until": until.isoformat()})
    with working(settings):
        land_many(connection, ids(5, 30))
        fill_tracks(connection)
        wait_until(lambda: len(receiver.taken) == 45, "the live events and the replay")
        wait_until(lambda: all(each.is_finished for each in read_progress(connection) if each.replay), "its end")
    assert number == 1
    assert sorted(receiver.taken_ids[30:]) == sorted([*ids(10, 9), *ids(5, 30)])
    [replay] = [each for each in read_progress(connection) if each.replay]
    assert (replay.delivered, replay.waiting) == (10, 0)


def test_a_replay_by_the_events_own_time_and_name_continues_after_a_stop(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Only matching events go, and none of them twice."""
    add_segment(connection, receiver, batch=2)
    land_many(connection, ids(20))
    fill_tracks(connection)
    connection.execute("update iterable.tracks set timestamp = '2026-03-01' where id in ('m3', 'm4', 'm5', 'm9')")
    deliver(database)
    selection = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-02T00:00:00Z", "by": "time", "events": ["Email *"]}
    number = add_replay(connection, find_destination(connection, "cdp").id, [], selection)
    sent = len(receiver.taken)

    def answer(_: Received) -> Respond:
        if len(receiver.requests) == 11:
            connection.execute("update raw.destinations set state = 'paused', pause_reason = 'manual'")
            return Respond(503)
        return Respond()

    receiver.answer = answer
    deliver(database, replay=number)
    assert len(receiver.taken) == sent
    connection.execute("update raw.destinations set state = 'active', pause_reason = null")
    deliver(database, replay=number)
    assert receiver.taken_ids[sent:] == ["m3", "m4", "m5", "m9"]
    unmatched = add_replay(connection, find_destination(connection, "cdp").id, [], selection | {"events": ["SMS *"]})
    deliver(database, replay=unmatched)
    assert receiver.taken_ids[sent:] == ["m3", "m4", "m5", "m9"]
