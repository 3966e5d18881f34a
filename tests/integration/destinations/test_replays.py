"""Replays: events go again by their time and name, beside the live delivery, which does not wait for them."""

import statistics
import threading
import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from loader.destinations.shared import Shared
from loader.postgres.database import Database
from loader.raw.delivery_windows import add_replay
from loader.raw.destinations import find_destination, read_progress
from loader.settings import Settings
from tests.support.deliveries import (
    MovingClock,
    add_segment,
    conserved,
    deliver,
    fill_tracks,
    ids,
    land_many,
    land_numbers,
)
from tests.support.delivery_workers import working
from tests.support.receivers import Received, Receiver, Respond
from tests.support.waiting import DEADLINE_SECONDS, wait_until


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


def test_a_replay_by_event_time_and_name_continues_after_a_stop(
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


def land_month(connection: psycopg.Connection, count: int) -> dict[str, str]:
    """Land events of the last month; return the selection of a replay of them."""
    land_numbers(connection, count, days=30)
    fill_tracks(connection)
    row = connection.execute("select max(received_at) from raw.events").fetchone()
    assert row is not None
    return {"until": (row[0] + timedelta(microseconds=1)).isoformat()}


def test_live_events_and_a_long_replay_do_not_wait_for_each_other(
    database: Database, settings: Settings, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The receiver holds a request of the replay until all live events are there, and then a live request."""
    found = add_segment(connection, receiver)
    month = land_month(connection, 3000)
    deliver(database)
    live, later = ids(250, 3000), ids(10, 4000)
    are_live_taken, is_replay_over = threading.Event(), threading.Event()
    order: list[str] = []

    def answer(request: Received) -> Respond:
        if request.ids[0] in later:
            assert is_replay_over.wait(DEADLINE_SECONDS)
        elif request.ids[0] not in live and order.count("replay") == 3:
            assert are_live_taken.wait(DEADLINE_SECONDS)
        order.append("live" if request.ids[0] in {*live, *later} else "replay")
        return Respond()

    receiver.answer = answer
    del receiver.taken[:]
    add_replay(connection, found.id, [], month)
    with working(settings):
        wait_until(lambda: order.count("replay") == 3, "the first requests of the replay")
        for start in (3000, 3050, 3150):
            land_many(connection, ids(50 if start == 3000 else 100, start))
            fill_tracks(connection)
        wait_until(lambda: set(live) <= set(receiver.taken_ids), "the live events beside a replay that waits")
        assert order.count("replay") == 3
        land_many(connection, later)
        fill_tracks(connection)
        are_live_taken.set()
        wait_until(lambda: all(each.is_finished for each in read_progress(connection) if each.replay), "the replay")
        assert not set(later) & set(receiver.taken_ids)
        is_replay_over.set()
        wait_until(lambda: set(later) <= set(receiver.taken_ids), "the last live events")
    assert sorted(receiver.taken_ids) == sorted([*ids(3000), *live, *later])
    wait_until(lambda: conserved(connection)["delivered"] == 3260, "the last commit")


def test_a_live_request_waits_for_one_turn_of_a_replay_at_most(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The rate of a destination is common to both, and the replay takes one turn at a time."""
    found = add_segment(connection, receiver, batch=1, rate=2.0)
    clock, shared, waits = MovingClock(), Shared(), list[float]()
    month = land_month(connection, 40)
    deliver(database, clock=clock, shared=shared)

    def answer(request: Received) -> Respond:
        if request.ids[0].startswith("m") and len(receiver.requests) % 10 == 0:
            land_many(connection, [f"live{len(receiver.requests)}"])
            fill_tracks(connection)
            before = clock.seconds()
            deliver(database, clock=clock, shared=shared)
            waits.append(clock.seconds() - before)
        return Respond()

    receiver.answer = answer
    number = add_replay(connection, found.id, [], month)
    deliver(database, clock=clock, shared=shared, replay=number)
    assert [round(each, 3) for each in waits] == [0.5] * len(waits)
    assert len(waits) >= 4
    assert len(receiver.requests) == 80 + len(waits)


@pytest.mark.soak
def test_two_replays_of_a_month_and_live_events_lose_nothing(
    database: Database,
    settings: Settings,
    connection: psycopg.Connection,
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ten live events a second arrive beside two replays of 300,000 events, one of them with a rate. Prints figures."""
    found = add_segment(connection, receiver)
    month = land_month(connection, 300_000)
    deliver(database)
    landed: dict[str, float] = {}
    arrived: dict[str, float] = {}

    def answer(request: Received) -> Respond:
        for each in request.ids:
            if not each.startswith("m"):
                arrived.setdefault(each, time.monotonic())
        return Respond()

    receiver.answer = answer

    def measure(name: str) -> list[float]:
        """Land events for a minute; return their seconds from the commit of tracks to the receiver."""
        names = [f"{name}{number}" for number in range(600)]
        begin = time.monotonic()
        for number, each in enumerate(names):
            land_many(connection, [each])
            fill_tracks(connection)
            landed[each] = time.monotonic()
            # The pace of the sender: the latency is that at ten events a second.
            time.sleep(max(0.0, begin + (number + 1) / 10 - time.monotonic()))
        wait_until(lambda: len(arrived) == len(landed), "the live events")
        return [arrived[each] - landed[each] for each in names]

    with working(settings):
        alone = measure("alone")
        add_replay(connection, found.id, [], month | {"rate": 20.0})
        add_replay(connection, found.id, [], month)
        sent = len(receiver.requests)
        beside = measure("beside")
        requests = len(receiver.requests) - sent
        wait_until(lambda: all(each.is_finished for each in read_progress(connection) if each.replay), "the replays")
    with capsys.disabled():
        for name, seconds in (("alone", alone), ("beside two replays", beside)):
            highest = statistics.quantiles(seconds, n=20)[-1]
            print(f"\n{name}: median {statistics.median(seconds):.2f} s, 95 % below {highest:.2f} s", end="")  # noqa: T201
        print(f"; {requests} requests beside, ratio {statistics.median(beside) / statistics.median(alone):.2f}")  # noqa: T201
    assert sorted(set(receiver.taken_ids)) == sorted([*ids(300_000), *landed])
    assert conserved(connection)["delivered"] == 300_000 + len(landed)
