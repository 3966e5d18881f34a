"""Kills of workers and restarts of the database: everything arrives, and one batch repeats for each of them at most."""

import random
import signal
import threading
from functools import partial
from pathlib import Path

import psycopg
import pytest

from loader.destinations.worker import Worker
from loader.postgres.database import open_database
from loader.settings import Settings
from tests.support.deliveries import (
    add_segment,
    conserved,
    fill_tracks,
    ids,
    land_calls,
    land_many,
    make_tracks,
    new_destination,
)
from tests.support.delivery_workers import Disturbance, working
from tests.support.iterable_project import HALF, IterableProject, MixedCalls
from tests.support.own_server import own_server, restart_server, stop_server
from tests.support.receivers import LOST, Received, Receiver, Respond
from tests.support.tcp_proxy import Proxy
from tests.support.waiting import DEADLINE_SECONDS, wait_until

REFUSALS = (Respond(503), Respond(429), Respond(429, headers={"Retry-After": "1"}))


@pytest.mark.parametrize("rounds", [2, pytest.param(200, marks=pytest.mark.soak)])
def test_kills_and_lost_answers_lose_nothing_and_repeat_one_batch_each(  # noqa: PLR0917 - fixtures
    settings: Settings, connection: psycopg.Connection, receiver: Receiver, proxy: Proxy, tmp_path: Path, rounds: int
) -> None:
    """Without the ids, the receiver has at most one batch twice for each kill, lost connection and lost answer."""
    add_segment(connection, receiver, batch=10)
    landed: list[str] = []

    def land() -> None:
        landed.extend(ids(60, len(landed)))
        land_many(connection, landed[-60:])
        fill_tracks(connection)

    disturbance = Disturbance(settings, receiver, proxy, tmp_path / "log", seed=rounds, answers=(LOST, LOST, *REFUSALS))
    receiver.answer = lambda _: disturbance.choose_answer() or Respond()
    disturbance.run(connection, rounds, land)
    receiver.answer = lambda _: Respond()
    Worker(settings, once=True).run(threading.Event())
    assert list(dict.fromkeys(receiver.taken_ids)) == landed
    assert len(receiver.taken) - len(landed) <= 10 * disturbance.repeats
    assert conserved(connection)["delivered"] == len(landed)


@pytest.mark.parametrize("rounds", [2, pytest.param(120, marks=pytest.mark.soak)])
def test_kills_and_half_applied_requests_leave_each_event_once_in_iterable(  # noqa: PLR0917 - fixtures
    settings: Settings, connection: psycopg.Connection, receiver: Receiver, proxy: Proxy, tmp_path: Path, rounds: int
) -> None:
    """Every event, purchase and field of a profile is as expected. Iterable knows an event by its id."""
    project = IterableProject()
    receiver.answer = project.answer
    new_destination(connection, "iterable", name="crm", url=receiver.url, key="env:DESTINATION_KEY")
    calls = MixedCalls(rounds)

    def land() -> None:
        land_calls(connection, *calls.make(60))
        fill_tracks(connection)

    disturbance = Disturbance(settings, receiver, proxy, tmp_path / "log", seed=rounds, answers=(LOST, HALF, *REFUSALS))
    project.disturb = lambda _, __: disturbance.choose_answer()
    disturbance.run(connection, rounds, land)
    project.disturb = lambda _, __: None
    Worker(settings, once=True).run(threading.Event())
    calls.assert_arrived(project)
    assert conserved(connection, "crm")["delivered"] == calls.count


@pytest.mark.parametrize("restarts", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_restarts_of_the_database_lose_nothing_and_repeat_one_batch_each(
    receiver: Receiver, cluster_template: Path, restarts: int
) -> None:
    """The server stops fast or at once while two workers run: in the middle of a request, or between two."""
    chance = random.Random(restarts)
    landed: list[str] = []

    def answer_after(number: int, is_reached: threading.Event, is_answered: threading.Event, _: Received) -> Respond:
        if len(receiver.requests) == number:
            is_reached.set()
            assert is_answered.wait(DEADLINE_SECONDS)
        return Respond()

    def has_taken(number: int) -> bool:
        return len(set(receiver.taken_ids)) == number

    with own_server(cluster_template) as settings, open_database(settings) as database:
        with database.connect(autocommit=True) as connection:
            make_tracks(connection)
            add_segment(connection, receiver, batch=10)
        with working(settings), working(settings):
            for number in range(restarts):
                restart_at = len(receiver.requests) + chance.randint(1, 6)
                is_reached, is_answered = threading.Event(), threading.Event()
                if chance.random() < 0.5:
                    is_answered.set()
                receiver.answer = partial(answer_after, restart_at, is_reached, is_answered)
                landed += ids(60, len(landed))
                with database.connect(autocommit=True) as connection:
                    land_many(connection, landed[-60:])
                    fill_tracks(connection)
                assert is_reached.wait(DEADLINE_SECONDS)
                stop_server(settings, signal.SIGQUIT if number % 2 else signal.SIGINT)
                is_answered.set()
                restart_server(settings)
                wait_until(partial(has_taken, len(landed)), "all events after a restart")
        with database.connect(autocommit=True) as connection:
            assert conserved(connection)["delivered"] == len(landed)
    assert list(dict.fromkeys(receiver.taken_ids)) == landed
    assert len(receiver.taken) - len(landed) <= 10 * restarts
