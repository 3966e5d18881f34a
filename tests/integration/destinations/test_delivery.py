"""Which events a destination gets, in which order, and once."""

import threading
from itertools import pairwise

import psycopg
import pytest

from loader.destinations.delivery import Delivery
from loader.destinations.shared import Shared
from loader.postgres.database import Database
from loader.raw.delivery_windows import add_replay
from loader.raw.destinations import add_destination, change_filters, find_destination
from tests.support.deliveries import (
    MovingClock,
    add_segment,
    conserved,
    deliver,
    fill_tracks,
    ids,
    land_calls,
    land_many,
    make_tracks,
)
from tests.support.receivers import LOST, Received, Receiver, Respond, in_turn


def test_events_go_in_landing_order_after_tracks_has_them(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """An event that tracks has not read stays, and goes with the next window."""
    add_segment(connection, receiver)
    land_many(connection, ids(250))
    deliver(database)
    assert receiver.taken == []
    fill_tracks(connection)
    land_many(connection, ids(10, 250))
    deliver(database)
    assert receiver.taken_ids == ids(250)
    assert [len(request.calls) for request in receiver.requests] == [100, 100, 50]
    fill_tracks(connection)
    deliver(database)
    assert receiver.taken_ids == ids(260)
    assert conserved(connection)["delivered"] == 260


def test_a_transaction_that_commits_late_is_in_a_later_window(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Its events go once, none before the commit, and none of the others twice."""
    add_segment(connection, receiver)
    with database.connect() as late:
        late.execute("select pg_current_xact_id()")
        land_many(late, ids(3))
        for start in range(100, 130, 10):
            land_many(connection, ids(10, start))
            fill_tracks(connection)
            deliver(database)
        assert receiver.taken_ids == ids(30, 100)
        late.commit()
    deliver(database)
    assert receiver.taken_ids == ids(30, 100)
    fill_tracks(connection)
    deliver(database)
    assert receiver.taken_ids == [*ids(30, 100), *ids(3)]
    assert conserved(connection)["delivered"] == 33


def test_of_events_with_one_id_only_the_event_in_tracks_is_sent(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The others are counted as repeated, in the same window or a later one."""
    add_segment(connection, receiver)
    land_calls(connection, {"messageId": "a", "properties": {"n": 1}}, {"messageId": "b"})
    fill_tracks(connection)
    land_calls(connection, {"messageId": "a", "properties": {"n": 2}})
    land_calls(connection, {"messageId": "c", "properties": {"n": 1}}, {"messageId": "c", "properties": {"n": 2}})
    fill_tracks(connection)
    deliver(database)
    assert [(call["messageId"], call.get("properties")) for call in receiver.taken] == [
        ("a", {"n": 1}),
        ("b", None),
        ("c", {"n": 1}),
    ]
    land_calls(connection, {"messageId": "b"})
    fill_tracks(connection)
    deliver(database)
    assert receiver.taken_ids == ["a", "b", "c"]
    assert conserved(connection) == {"delivered": 3, "filtered": 0, "repeated": 3, "dead": 0}


def test_calls_without_a_table_are_sent_once_in_landing_order(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A repeated id among the last calls is left out, also after a restart of the worker."""
    add_segment(connection, receiver)
    land_calls(
        connection,
        {"type": "identify", "messageId": "i", "traits": {"plan": "pro"}},
        {"type": "identify", "messageId": "i"},
        {"type": "page", "messageId": "p", "name": "Home"},
    )
    fill_tracks(connection)
    deliver(database)
    land_calls(connection, {"type": "identify", "messageId": "i"}, {"type": "group", "messageId": "g", "groupId": "x"})
    fill_tracks(connection)
    deliver(database)
    assert [(call["type"], call["messageId"]) for call in receiver.taken] == [
        ("identify", "i"),
        ("page", "p"),
        ("group", "g"),
    ]
    assert receiver.taken[0]["traits"] == {"plan": "pro"}
    assert conserved(connection)["repeated"] == 2


def test_a_new_destination_without_from_start_gets_only_later_events(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Events that have landed before stay, even if tracks reads them later. A later source begins with its start."""
    land_many(connection, ids(3))
    settings = {"url": receiver.url, "key": "env:DESTINATION_KEY"}
    add_destination(connection, "cdp", "segment", settings, {}, from_start=False)
    fill_tracks(connection)
    deliver(database)
    assert receiver.taken_ids == []
    land_many(connection, ids(3, 10))
    connection.execute("insert into raw.sources (name, schema_name) values ('Shop', 'shop')")
    make_tracks(connection, "shop")
    land_calls(connection, {"messageId": "s"}, source="shop")
    fill_tracks(connection)
    fill_tracks(connection, "shop")
    deliver(database)
    assert receiver.taken_ids == [*ids(3, 10), "s"]


def test_a_lost_answer_repeats_one_batch_with_the_same_calls(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The receiver can drop the repeated calls by their ids."""
    add_segment(connection, receiver, batch=10)
    land_many(connection, ids(40))
    fill_tracks(connection)
    receiver.answer = in_turn(Respond(), LOST)
    deliver(database)
    assert [request.ids[0] for request in receiver.requests] == ["m0", "m10", "m10", "m20", "m30"]
    assert receiver.requests[1].calls == receiver.requests[2].calls
    assert conserved(connection)["delivered"] == 40


def test_a_worker_that_ends_in_a_window_continues_at_the_next_batch(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Events that landed meanwhile come in the next window."""
    add_segment(connection, receiver, batch=10)
    land_many(connection, ids(40))
    fill_tracks(connection)
    stop = threading.Event()

    def stop_after_two(_: object) -> Respond:
        if len(receiver.requests) == 2:
            stop.set()
        return Respond()

    receiver.answer = stop_after_two
    with database.connect(autocommit=True) as own:
        delivery = Delivery(own, find_destination(own, "cdp").id, 0, clock=MovingClock(), stop=stop)
        assert delivery.work() is False
        delivery.close()
    assert receiver.taken_ids == ids(20)
    land_many(connection, ids(5, 40))
    fill_tracks(connection)
    deliver(database)
    assert receiver.taken_ids == ids(45)
    assert conserved(connection)["delivered"] == 45


def test_a_large_backlog_goes_in_windows_of_bounded_size(
    database: Database, connection: psycopg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window ends with a transaction. One transaction of many events is read page by page."""
    monkeypatch.setattr("loader.destinations.delivery.WINDOW_EVENTS", 20)
    monkeypatch.setattr("loader.destinations.segment.SegmentReceiver.page_events", 7)
    add_segment(connection, receiver)
    land_many(connection, ids(100))
    for start in range(100, 200, 10):
        land_many(connection, ids(10, start))
    fill_tracks(connection)
    deliver(database)
    assert receiver.taken_ids == ids(200)
    assert max(len(request.calls) for request in receiver.requests) == 7
    assert conserved(connection)["delivered"] == 200


@pytest.mark.parametrize("lanes", [1, 8])
def test_the_order_of_each_user_is_the_landing_order(
    database: Database, connection: psycopg.Connection, receiver: Receiver, lanes: int
) -> None:
    """With several lanes, several batches are under way, each for other users."""
    add_segment(connection, receiver, batch=5, lanes=lanes)
    land_many(connection, ids(300), users=40)
    fill_tracks(connection)
    receiver.answer = in_turn(*[Respond(503)] * 3, LOST)
    deliver(database)
    order = {each: place for place, each in enumerate(ids(300))}
    latest: dict[str, int] = {}
    seen = set()
    for call in receiver.taken:
        place = order[call["messageId"]]
        if place not in seen:
            assert place > latest.get(call["userId"], -1)
            latest[call["userId"]] = place
        seen.add(place)
    assert len(seen) == 300
    assert len(receiver.taken) <= 305
    assert conserved(connection)["delivered"] == 300


def test_the_rate_of_a_destination_holds_for_its_replays_too(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A replay may have a lower rate of its own beside it."""
    found = add_segment(connection, receiver, batch=1, rate=2.0)
    clock, shared, times = MovingClock(), Shared(), list[float]()

    def answer(_: Received) -> Respond:
        times.append(clock.seconds())
        return Respond()

    receiver.answer = answer
    land_many(connection, ids(3))
    fill_tracks(connection)
    deliver(database, clock=clock, shared=shared)
    for rate in (0.0, 0.1):
        number = add_replay(connection, found.id, [], {"since": "2020-01-01T00:00:00Z", "rate": rate})
        deliver(database, clock=clock, shared=shared, replay=number)
    waits = [round(after - before, 3) for before, after in pairwise(times)]
    # The first request of the last replay waited for a turn of the destination.
    assert waits == [*[0.5] * 6, 9.5, 10.0]


def test_filters_act_from_the_next_window(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A window that has begun keeps its filters, even if the worker starts again within it."""
    add_segment(connection, receiver, batch=1)
    land_many(connection, ids(4))
    fill_tracks(connection)
    found = find_destination(connection, "cdp")
    stop = threading.Event()

    def change_in_window(_: object) -> Respond:
        if len(receiver.requests) == 1:
            change_filters(connection, found.id, {"exclude": ["Email *"]})
            stop.set()
        return Respond()

    receiver.answer = change_in_window
    with database.connect(autocommit=True) as own:
        Delivery(own, found.id, 0, clock=MovingClock(), stop=stop).work()
    deliver(database)
    assert receiver.taken_ids == ids(4)
    land_many(connection, ids(4, 4))
    fill_tracks(connection)
    deliver(database)
    assert receiver.taken_ids == ids(4)
    change_filters(connection, found.id, {})
    deliver(database)
    assert receiver.taken_ids == ids(4)
    assert conserved(connection) == {"delivered": 4, "filtered": 4, "repeated": 0, "dead": 0}


def test_events_of_other_sources_are_counted_and_not_read(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The cursor passes them, so a later change of the filter never sends them."""
    add_segment(connection, receiver, filters={"sources": ["shop"]})
    land_many(connection, ids(20))
    fill_tracks(connection)
    deliver(database)
    assert receiver.requests == []
    assert conserved(connection)["filtered"] == 20


def test_a_full_refresh_sends_nothing_again(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The tables are filled again from the same events, which the destination has got."""
    add_segment(connection, receiver)
    land_many(connection, ids(10))
    fill_tracks(connection)
    [[early]] = connection.execute("select snapshot::text from raw.cursors where model = 'tracks'").fetchall()
    land_many(connection, ids(20, 10))
    fill_tracks(connection)
    deliver(database)
    # A rebuild begins with an empty table, and a run that began earlier may end later.
    for snapshot in (None, early):
        connection.execute("truncate iterable.tracks")
        connection.execute("update raw.cursors set snapshot = %s where model = 'tracks'", [snapshot])
        deliver(database)
    land_many(connection, ids(5, 30))
    fill_tracks(connection)
    deliver(database)
    assert receiver.taken_ids == ids(35)
    assert conserved(connection)["delivered"] == 35
