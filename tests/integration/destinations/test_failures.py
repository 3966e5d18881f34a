"""Refusals, outages and dead letters: nothing is lost, and no wrong setting empties the queue."""

import json
import threading
from base64 import b64encode
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog.testing

from loader.destinations.delivery import Delivery
from loader.postgres.database import Database
from loader.raw.dead_letters import list_letters, retry_letters
from loader.raw.delivery_windows import MovedCursorError
from loader.raw.destinations import (
    Destination,
    change_filters,
    find_destination,
    pause_destination,
    resume_destination,
)
from tests.support.deliveries import (
    MovingClock,
    add_segment,
    change_settings,
    conserved,
    deliver,
    fill_tracks,
    ids,
    land_calls,
    land_many,
    make_tracks,
    new_destination,
)
from tests.support.delivery_fixtures import KEY
from tests.support.receivers import UNTRUSTED, Received, Receiver, Respond, in_turn, receiving, refusing

Call = dict[str, Any]


def is_bad(call: Call) -> bool:
    """Return whether a test marked the call as bad."""
    return bool(call.get("properties", {}).get("bad"))


def land_with_bad(connection: psycopg.Connection, count: int, bad: set[int]) -> None:
    """Land events of which some are bad."""
    calls = [{"messageId": f"m{n}", "properties": {"bad": n in bad}} for n in range(count)]
    land_calls(connection, *calls)
    fill_tracks(connection)


def test_a_temporary_error_repeats_the_same_batch(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The waits grow up to five minutes, and nothing dies."""
    statuses = [408, 425, 429, 500, 502, 503]
    add_segment(connection, receiver)
    land_many(connection, ids(3))
    fill_tracks(connection)
    receiver.answer = in_turn(*map(Respond, statuses * 2))
    clock = MovingClock()
    deliver(database, clock=clock)
    assert [request.ids for request in receiver.requests] == [ids(3)] * 13
    assert clock.seconds() < 12 * 300
    assert conserved(connection) == {"delivered": 3, "filtered": 0, "repeated": 0, "dead": 0}
    assert find_destination(connection, "cdp").requests == {str(each): 2 for each in statuses} | {"200": 1}


def test_retry_after_is_respected_up_to_an_hour(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Both forms count: seconds and a date."""
    add_segment(connection, receiver)
    land_many(connection, ids(1))
    fill_tracks(connection)
    clock = MovingClock()
    waits: list[float] = []

    def answer(_: Received) -> Respond:
        waits.append(clock.seconds())
        after = {1: "40", 2: "86400"}.get(len(waits))
        return Respond(429, headers={"Retry-After": after}) if after else Respond()

    receiver.answer = answer
    deliver(database, clock=clock)
    assert [round(after - before) for before, after in pairwise(waits)] == [40, 3600]


@pytest.mark.parametrize(
    ("status", "after", "most"),
    [
        (429, "0", 100),
        (503, "0.1", 100),
        (429, "-5", 100),
        (503, "soon", 100),
        (429, "Thu, 01 Jan 1970 00:00:00 GMT", 100),
        (503, "999999999", 10),
        (429, "99999999999999999999", 100),
        (429, "Fri, 31 Dec 9999 23:59:59 GMT", 10),
    ],
)
def test_with_any_retry_after_value_the_requests_stay_few_but_regular(  # noqa: PLR0917 - fixtures
    database: Database,
    connection: psycopg.Connection,
    receiver: Receiver,
    status: int,
    after: str,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In two hours of refusals, the receiver gets few requests, and at least one in each hour."""
    monkeypatch.setattr("loader.destinations.sending._LOOK_SECONDS", 300.0)
    add_segment(connection, receiver)
    land_many(connection, ids(3))
    fill_tracks(connection)
    clock = MovingClock()
    times: list[float] = []

    def answer(_: Received) -> Respond:
        times.append(clock.seconds())
        is_busy = clock.seconds() < 7200 and len(times) < 1000
        return Respond(status, headers={"Retry-After": after}) if is_busy else Respond()

    receiver.answer = answer
    deliver(database, clock=clock)
    assert 3 <= len(times) <= most
    assert max(later - before for before, later in pairwise(times)) <= 3600.001
    assert receiver.taken_ids == ids(3)


def test_a_failing_destination_shows_the_reason_until_it_recovers(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The state has the reason while the receiver is away, and nothing afterwards."""
    add_segment(connection, receiver)
    land_many(connection, ids(1))
    fill_tracks(connection)
    seen: list[Destination] = []

    def answer(_: Received) -> Respond:
        seen.append(find_destination(connection, "cdp"))
        return Respond(503) if len(seen) < 3 else Respond()

    receiver.answer = answer
    deliver(database)
    assert [each.state for each in seen] == ["active", "failing", "failing"]
    assert seen[1].last_error == "127.0.0.1 answered 503"
    assert seen[1].next_try_at is not None
    healed = find_destination(connection, "cdp")
    assert (healed.state, healed.last_error, healed.next_try_at) == ("active", None, None)
    assert healed.last_delivered_at is not None


def test_a_receiver_that_is_not_there_is_tried_again(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A refused connection is no answer, like a lost one."""
    new_destination(connection, "webhook", url="http://127.0.0.1:9")
    land_many(connection, ids(1))
    fill_tracks(connection)

    class Impatient(MovingClock):
        def wait(self, stop: Any, seconds: float) -> None:
            super().wait(stop, seconds)
            if len(self.waits) == 3:
                pause_destination(connection, find_destination(connection, "cdp").id)

    deliver(database, clock=Impatient())
    stopped = find_destination(connection, "cdp")
    assert stopped.state == "paused"
    assert set(stopped.requests) == {"0"}
    assert conserved(connection)["delivered"] == 0


def test_a_refused_key_pauses_and_one_probe_resumes(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Every five minutes one request looks whether the key works again. Nothing dies."""
    refusals = [
        Respond(status, headers={"Location": f"{receiver.url}/elsewhere"}) for status in (301, 401, 403, 404, 410)
    ]
    add_segment(connection, receiver, batch=10)
    land_many(connection, ids(40))
    fill_tracks(connection)
    states: list[str | None] = []

    def answer(_: Received) -> Respond:
        states.append(find_destination(connection, "cdp").pause_reason)
        return refusals.pop() if refusals else Respond()

    receiver.answer = answer
    clock = MovingClock()
    deliver(database, clock=clock)
    assert states[:6] == [None, *["config"] * 5]
    assert round(clock.seconds()) == 1500
    assert {request.path for request in receiver.requests} == {"/v1/batch"}
    assert receiver.taken_ids == ids(40)
    assert conserved(connection)["dead"] == 0


def test_an_untrusted_certificate_pauses_the_delivery_with_the_reason(
    database: Database, connection: psycopg.Connection
) -> None:
    """Nothing reaches such a receiver, and nothing dies. A trusted certificate for another name is refused as well."""
    with receiving(UNTRUSTED) as receiver:
        found = new_destination(connection, "webhook", url=receiver.url)
        land_many(connection, ids(3))
        fill_tracks(connection)
        address = receiver.url.replace("localhost", "127.0.0.1")
        for settings, host, problem in (
            ({}, "localhost", "self-signed certificate"),
            ({"ca_file": str(UNTRUSTED), "url": address}, "127.0.0.1", "IP address mismatch, certificate is not valid"),
        ):
            change_settings(connection, found, **settings)
            deliver(database, patience_seconds=1)
            paused = find_destination(connection, "cdp")
            assert paused.pause_reason == "config"
            assert f"the certificate of {host} is not accepted: {problem}" in str(paused.last_error)
        assert receiver.requests == []
        change_settings(connection, found, url=receiver.url)
        deliver(database)
        assert receiver.taken_ids == ids(3)
    assert conserved(connection) == {"delivered": 3, "filtered": 0, "repeated": 0, "dead": 0}


def test_a_missing_key_pauses_without_a_request(
    database: Database, connection: psycopg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is read for each request, so a new one works without a restart."""
    add_segment(connection, receiver)
    land_many(connection, ids(1))
    fill_tracks(connection)
    monkeypatch.delenv("DESTINATION_KEY")

    class Waiting(MovingClock):
        def wait(self, stop: Any, seconds: float) -> None:
            super().wait(stop, seconds)
            paused = find_destination(connection, "cdp")
            assert paused.pause_reason == "config"
            assert "DESTINATION_KEY" in str(paused.last_error)
            monkeypatch.setenv("DESTINATION_KEY", KEY)

    deliver(database, clock=Waiting())
    assert receiver.taken_ids == ids(1)


def test_a_key_in_a_file_is_replaced_without_a_restart(
    database: Database, connection: psycopg.Connection, receiver: Receiver, tmp_path: Path
) -> None:
    """The next request has the new key."""
    place = tmp_path / "key"
    place.write_text("old\n")
    new_destination(connection, "segment", url=receiver.url, key=f"file:{place}")
    land_many(connection, ids(1))
    fill_tracks(connection)

    def answer(request: Received) -> Respond:
        is_new = request.headers["authorization"] == f"Basic {b64encode(b'new:').decode()}"
        place.write_text("new\n")
        return Respond() if is_new else Respond(401)

    receiver.answer = answer
    clock = MovingClock()
    deliver(database, clock=clock)
    assert receiver.taken_ids == ids(1)
    assert round(clock.seconds()) == 300


def test_a_refused_batch_is_halved_until_the_culprits_are_alone(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Exactly the bad events are dead, and all others arrive in their order."""
    found = add_segment(connection, receiver)
    land_with_bad(connection, 100, {0, 41, 42, 99})
    receiver.answer = refusing(is_bad)
    deliver(database)
    assert receiver.taken_ids == [each for each in ids(100) if each not in {"m0", "m41", "m42", "m99"}]
    letters = list_letters(connection, found.id, 10)
    assert [(each.message_id, each.status, each.attempts) for each in letters] == [
        (each, 400, 1) for each in ("m0", "m41", "m42", "m99")
    ]
    assert conserved(connection) == {"delivered": 96, "filtered": 0, "repeated": 0, "dead": 4}


def test_accepted_dead_letters_leave_the_list_after_a_retry(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Those that are accepted leave the list. The others stay, with one more attempt."""
    found = add_segment(connection, receiver)
    land_with_bad(connection, 30, {3, 5, 7})
    receiver.answer = refusing(is_bad)
    deliver(database)
    taken = len(receiver.taken)
    assert retry_letters(connection, found.id, None) == 3
    receiver.answer = refusing(lambda call: call["messageId"] == "m5")
    deliver(database)
    assert receiver.taken_ids[taken:] == ["m3", "m7"]
    assert [(each.message_id, each.attempts) for each in list_letters(connection, found.id, 10)] == [("m5", 2)]
    assert conserved(connection) == {"delivered": 29, "filtered": 0, "repeated": 0, "dead": 1}


def test_dead_letters_without_events_do_not_stop_other_dead_letters(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Letters of another source go, although these come first."""
    found = add_segment(connection, receiver)
    connection.execute("insert into raw.sources (name, schema_name) values ('App', 'app')")
    make_tracks(connection, "app")
    for source in ("app", "iterable"):
        land_calls(connection, {"messageId": source}, source=source)
        fill_tracks(connection, source)
    receiver.answer = lambda _: Respond(400)
    deliver(database)
    connection.execute("delete from raw.events where source = 'app'")
    receiver.answer = lambda _: Respond()
    assert retry_letters(connection, found.id, None) == 2
    deliver(database)
    assert receiver.taken_ids == ["iterable"]


def test_twenty_refusals_in_a_row_pause_the_destination(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The rest of the queue is not touched until a person resumes it."""
    found = add_segment(connection, receiver, batch=7)
    land_with_bad(connection, 100, set(range(100)))
    receiver.answer = refusing(is_bad)
    deliver(database)
    paused = find_destination(connection, "cdp")
    assert (paused.state, paused.pause_reason) == ("paused", "rejecting")
    assert conserved(connection) == {"delivered": 0, "filtered": 0, "repeated": 0, "dead": 20}
    deliver(database)
    assert conserved(connection)["dead"] == 20
    receiver.answer = lambda _: Respond()
    resume_destination(connection, found.id)
    retry_letters(connection, found.id, None)
    deliver(database)
    assert sorted(receiver.taken_ids) == sorted(ids(100))
    assert conserved(connection)["delivered"] == 100


def test_refusals_by_the_loaders_own_checks_pause_the_destination(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A wrong mapping must not empty the queue, although no request is sent."""
    found = new_destination(connection, "iterable", url=receiver.url, key="env:DESTINATION_KEY")
    land_calls(connection, *({"messageId": each, "userId": None, "anonymousId": "a"} for each in ids(100)))
    fill_tracks(connection)
    deliver(database)
    paused = find_destination(connection, "cdp")
    assert (paused.state, paused.pause_reason) == ("paused", "rejecting")
    assert "no_user" in str(paused.last_error)
    assert "loader destination filter" in str(paused.last_error)
    assert receiver.requests == []
    assert conserved(connection)["dead"] == len(list_letters(connection, found.id, 100)) == 20


def test_an_accepted_event_between_refusals_restarts_the_count(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """One accepted event between them begins a new row, in one batch too."""
    add_segment(connection, receiver)
    large = "x" * 33_000
    land_calls(connection, *({"messageId": f"m{n}", "large": large if n % 20 else ""} for n in range(100)))
    fill_tracks(connection)
    deliver(database)
    assert find_destination(connection, "cdp").state == "active"
    assert conserved(connection) == {"delivered": 5, "filtered": 0, "repeated": 0, "dead": 95}


@pytest.fixture
def few_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause a destination after 5 refusals of the last 100 events, and not after 50 of 1,000."""
    monkeypatch.setattr("loader.destinations.delivery._REFUSALS_OF", 100)
    monkeypatch.setattr("loader.destinations.delivery.MOST_REFUSALS", 5)


@pytest.mark.usefixtures("few_refusals")
@pytest.mark.parametrize("is_changed", [False, True])
def test_a_resumed_destination_begins_to_count_anew(
    database: Database, connection: psycopg.Connection, receiver: Receiver, *, is_changed: bool
) -> None:
    """The same worker goes on: refusals of before the pause do not pause it again."""
    found = add_segment(connection, receiver, batch=10)
    land_with_bad(connection, 150, set(range(0, 150, 19)))
    receiver.answer = refusing(is_bad)
    with database.connect(autocommit=True) as own:
        delivery = Delivery(own, found.id, 0, clock=MovingClock(), stop=threading.Event())
        assert delivery.work() is False
        assert find_destination(connection, "cdp").pause_reason == "rejecting"
        done = sum(conserved(connection).values())
        if is_changed:
            change_filters(connection, found.id, {"exclude": ["SMS *"]})
        resume_destination(connection, found.id)
        while delivery.work():
            pass
        delivery.close()
    assert find_destination(connection, "cdp").state == "active"
    assert 100 <= done < 110
    assert sum(conserved(connection).values()) == 150


@pytest.mark.heavy
def test_refusals_of_one_event_in_twenty_pause_the_destination(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The last 1,000 events count, once there have been so many."""
    add_segment(connection, receiver)
    land_with_bad(connection, 1500, set(range(0, 1500, 19)))
    receiver.answer = refusing(is_bad)
    deliver(database)
    assert find_destination(connection, "cdp").pause_reason == "rejecting"
    assert 1000 <= sum(conserved(connection).values()) < 1100


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_one_bad_event_of_many_dies_and_stops_nothing(
    database: Database, connection: psycopg.Connection, receiver: Receiver, count: int
) -> None:
    """Exactly this event is dead, and it arrives after the mend."""
    found = add_segment(connection, receiver)
    bad = count // 2 - 266
    land_with_bad(connection, count, {bad})
    receiver.answer = refusing(is_bad)
    deliver(database)
    assert [each.message_id for each in list_letters(connection, found.id, 10)] == [f"m{bad}"]
    receiver.answer = lambda _: Respond()
    retry_letters(connection, found.id, None)
    deliver(database)
    assert receiver.taken_ids == [each for each in ids(count) if each != f"m{bad}"] + [f"m{bad}"]


def test_success_false_in_an_answer_with_200_is_a_refusal(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The event is dead, and the letter has the answer."""
    found = add_segment(connection, receiver)
    land_many(connection, ids(2))
    fill_tracks(connection)
    receiver.answer = lambda request: (
        Respond(body=b'{"success": false, "message": "no"}') if "m0" in request.ids else Respond()
    )
    deliver(database)
    [letter] = list_letters(connection, found.id, 10)
    assert (letter.message_id, letter.status) == ("m0", 200)
    assert connection.execute("select answer from raw.dead_letters").fetchall() == [
        ('{"success": false, "message": "no"}',)
    ]


def test_an_event_over_the_limit_goes_without_iterables_body_or_is_dead(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """No request is sent for an event that is too large in any form."""
    found = add_segment(connection, receiver, filters={"native": True})
    large = "x" * 33_000
    land_calls(
        connection,
        {"messageId": "a", "native": {"small": True}},
        {"messageId": "b", "native": {"large": large}},
        {"messageId": "c", "properties": {"large": large}},
    )
    fill_tracks(connection)
    deliver(database)
    assert [(call["messageId"], "native" in call) for call in receiver.taken] == [("a", True), ("b", False)]
    [letter] = list_letters(connection, found.id, 10)
    assert (letter.message_id, letter.status, letter.reason) == ("c", None, "too_large")


def test_a_person_can_pause_during_an_outage_and_resume(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A pause ends the waiting, and the next delivery begins with the same batch."""
    found = add_segment(connection, receiver)
    land_many(connection, ids(3))
    fill_tracks(connection)

    def answer(_: Received) -> Respond:
        pause_destination(connection, found.id)
        return Respond(500)

    receiver.answer = answer
    deliver(database)
    assert len(receiver.requests) == 1
    receiver.answer = lambda _: Respond()
    deliver(database)
    assert len(receiver.requests) == 1
    resume_destination(connection, found.id)
    deliver(database)
    assert receiver.taken_ids == ids(3)


@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_a_pause_acts_within_a_window(
    database: Database, connection: psycopg.Connection, receiver: Receiver, rate: float
) -> None:
    """A window may have thousands of requests, or hours between two of them."""
    clock = MovingClock()
    found = add_segment(connection, receiver, batch=1, rate=rate)
    land_many(connection, ids(20))
    fill_tracks(connection)

    def answer(_: Received) -> Respond:
        clock.move(3)
        if len(receiver.requests) == 3:
            pause_destination(connection, found.id)
        return Respond()

    receiver.answer = answer
    deliver(database, clock=clock)
    assert 3 <= len(receiver.requests) <= 5
    resume_destination(connection, found.id)
    deliver(database, clock=clock)
    assert receiver.taken_ids == ids(20)


def test_resuming_during_a_pause_for_the_key_tries_at_once(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A person need not wait for the next probe."""
    found = add_segment(connection, receiver)
    land_many(connection, ids(3))
    fill_tracks(connection)
    receiver.answer = in_turn(Respond(401))

    class Resuming(MovingClock):
        def wait(self, stop: Any, seconds: float) -> None:
            super().wait(stop, seconds)
            resume_destination(connection, found.id)

    clock = Resuming()
    deliver(database, clock=clock)
    assert receiver.taken_ids == ids(3)
    assert clock.seconds() < 30


def test_no_secret_is_in_the_log_or_in_the_database(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The key goes to the receiver alone, in one header."""
    add_segment(connection, receiver)
    land_many(connection, ids(3))
    fill_tracks(connection)
    receiver.answer = in_turn(Respond(401, body=b'{"message": "wrong key"}'), Respond(503), Respond(400), Respond(400))
    with structlog.testing.capture_logs() as logs:
        deliver(database)
    assert logs
    tables = ("destinations", "delivery_cursors", "dead_letters")
    kept = [connection.execute(f"select t::text from raw.{table} as t").fetchall() for table in tables]
    written = json.dumps([logs, kept], default=str)
    assert KEY not in written
    assert "a2V5LXRoYXQtbm9ib2R5LW1heS1zZWU6" not in written
    assert all("authorization" in request.headers for request in receiver.requests)


def test_a_receiver_that_is_away_for_hours_gets_everything_afterwards(
    database: Database, connection: psycopg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest event comes first. The requests of six hours are few, because the waits are long."""
    monkeypatch.setattr("loader.destinations.sending._LOOK_SECONDS", 300.0)
    add_segment(connection, receiver)
    clock = MovingClock()
    landed = 0

    def answer(_: Received) -> Respond:
        nonlocal landed
        if clock.seconds() >= 21_600:
            return Respond()
        if landed < 200:
            land_many(connection, ids(10, landed + 10))
            landed += 10
            fill_tracks(connection)
        return Respond(503)

    receiver.answer = answer
    land_many(connection, ids(10))
    fill_tracks(connection)
    deliver(database, clock=clock)
    assert receiver.taken_ids == ids(210)
    assert len(receiver.requests) < 500
    assert conserved(connection)["delivered"] == 210


def test_a_worker_without_the_lock_never_moves_a_cursor_that_was_moved(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Two workers that both believe to have the lock repeat one batch, and lose nothing."""
    found = add_segment(connection, receiver, batch=10)
    land_many(connection, ids(40))
    fill_tracks(connection)

    def answer(_: Received) -> Respond:
        if len(receiver.requests) == 1:
            deliver(database)
        return Respond()

    with database.connect(autocommit=True) as own:
        delivery = Delivery(own, found.id, 0, clock=MovingClock(), stop=threading.Event())
        receiver.answer = answer
        with pytest.raises(MovedCursorError):
            delivery.work()
        delivery.close()
    assert list(dict.fromkeys(receiver.taken_ids)) == ids(40)
    assert len(receiver.taken) == 50
    assert conserved(connection)["delivered"] == 40
