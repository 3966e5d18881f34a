"""Deliveries to a project of Iterable: once, in order, within its limits, and never in a loop."""

import json
import random
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader.destinations.delivery import Delivery
from loader.destinations.shared import Shared
from loader.postgres.database import Database
from loader.raw.dead_letters import list_letters
from loader.raw.delivery_windows import add_replay
from loader.raw.destinations import find_destination
from loader.raw.sources import add_key
from loader.settings import Settings
from tests.conftest import loader_here
from tests.support.collector_thread import collecting
from tests.support.deliveries import MovingClock, conserved, deliver, fill_tracks, land_calls, new_destination
from tests.support.delivery_workers import END_CONNECTIONS
from tests.support.iterable_project import HALF, IterableProject, MixedCalls
from tests.support.receivers import LOST, Receiver, Respond, receiving

Calls = list[dict[str, Any]]


def add_project(
    connection: psycopg.Connection, receiver: Receiver, project: IterableProject, **settings: object
) -> None:
    """Add a destination for a project."""
    receiver.answer = project.answer
    new_destination(
        connection,
        "iterable",
        name="crm",
        url=receiver.url,
        key="env:DESTINATION_KEY",
        project=project.project,
        **settings,
    )


def identify(number: int, user: str = "u1", **traits: object) -> dict[str, Any]:
    """Return an identify call."""
    return {"type": "identify", "messageId": f"i-{number}", "userId": user, "traits": traits}


def track(number: int, user: str = "u1", **properties: object) -> dict[str, Any]:
    """Return a track call."""
    return {"messageId": f"t-{number}", "userId": user, "event": "Played", "properties": properties}


def land(connection: psycopg.Connection, calls: Calls) -> None:
    """Land calls that tracks reads at once."""
    land_calls(connection, *calls)
    fill_tracks(connection)


def dead_reasons(connection: psycopg.Connection) -> dict[str, str]:
    """Return the reason of each dead letter by the id of its event."""
    letters = list_letters(connection, find_destination(connection, "crm").id, 10_000)
    return {letter.message_id: letter.reason for letter in letters}


def test_profiles_and_events_go_by_the_bulk_endpoints(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The calls of many users need one request for each endpoint."""
    project = IterableProject()
    add_project(connection, receiver, project)
    land(connection, [identify(1, plan="pro"), track(1), identify(2, user="u2", plan="free"), track(2, user="u2")])
    deliver(database, "crm")
    assert [path for path, _ in project.bodies] == ["/api/users/bulkUpdate", "/api/events/trackBulk"]
    assert project.profiles == {"u1": {"plan": "pro"}, "u2": {"plan": "free"}}
    assert list(project.events) == ["t-1", "t-2"]
    assert conserved(connection, "crm")["delivered"] == 4


def test_the_calls_of_each_user_keep_their_order(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """An update never overtakes an event that came before, and no event overtakes an update."""
    project = IterableProject()
    add_project(connection, receiver, project)
    chance = random.Random(9)
    calls: Calls = []
    for number in range(300):
        user = f"u{chance.randrange(30)}"
        calls.append(identify(number, user, n=number) if chance.random() < 0.4 else track(number, user))
    land(connection, calls)
    deliver(database, "crm")
    order: dict[str, list[int]] = {}
    for _, body in project.bodies:
        for user in body.get("users", []):
            order.setdefault(user["userId"], []).append(user["dataFields"]["n"])
        for event in body.get("events", []):
            order.setdefault(event["userId"], []).append(int(event["id"].removeprefix("t-")))
    # Several updates of one user in a row became one, which has the last number.
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert set(project.events) == {call["messageId"] for call in calls if call["messageId"].startswith("t-")}
    assert len(project.bodies) < 40


def test_events_of_a_new_user_wait_in_an_email_project(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The project shows a new profile to events a minute later, and refuses none of them."""
    clock, shared = MovingClock(), Shared()
    project = IterableProject("email", clock.seconds)
    add_project(connection, receiver, project)
    land(connection, [identify(1, "old", email="old@example.com")])
    deliver(database, "crm", clock=clock, shared=shared)
    clock.move(60)
    land(
        connection,
        [
            identify(2, "new", email="new@example.com"),
            track(3, "new", email="new@example.com"),
            track(4, "old", email="old@example.com"),
        ],
    )
    before = clock.seconds()
    deliver(database, "crm", clock=clock, shared=shared)
    assert [[event["id"] for event in body["events"]] for path, body in project.bodies if "events" in body] == [
        ["t-4"],
        ["t-3"],
    ]
    assert before + 60 <= clock.seconds() < before + 63
    assert dead_reasons(connection) == {}
    land(connection, [identify(5, "new", email="new@example.com", n=1), track(6, "new", email="new@example.com")])
    before = clock.seconds()
    deliver(database, "crm", clock=clock, shared=shared)
    assert clock.seconds() < before + 60
    assert set(project.events) == {"t-3", "t-4", "t-6"}


def test_a_stop_ends_the_wait_for_a_new_user_without_a_request(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The event goes after the restart."""
    stop = threading.Event()

    class Stopping(MovingClock):
        def wait(self, stop: threading.Event, seconds: float) -> None:
            stop.set()
            super().wait(stop, seconds)

    project = IterableProject("email")
    add_project(connection, receiver, project)
    land(connection, [identify(1, email="a@example.com"), track(2, email="a@example.com")])
    with database.connect(autocommit=True) as own:
        delivery = Delivery(own, find_destination(own, "crm").id, 0, clock=Stopping(), stop=stop)
        assert delivery.work() is False
        delivery.close()
    assert [path for path, _ in project.bodies] == ["/api/users/bulkUpdate"]
    assert conserved(connection, "crm")["delivered"] == 1


def test_every_event_and_field_arrives_once_under_failures(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Answers get lost, halves are applied before an error, and the limits are exceeded. No event counts twice."""
    project = IterableProject()
    add_project(connection, receiver, project)
    chance = random.Random(4)
    calls = MixedCalls(4)
    project.disturb = lambda _, __: chance.choice([None, None, None, LOST, HALF, Respond(503), Respond(429)])
    for _ in range(5):
        land(connection, calls.make(80))
        deliver(database, "crm")
    calls.assert_arrived(project)
    assert conserved(connection, "crm")["delivered"] == 400


def test_exactly_the_bad_items_of_a_batch_are_dead(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Each sort of bad item has its reason, all others are accepted, and none goes more often than halving needs."""
    project = IterableProject()
    project.conflicts = {"conflicting"}
    project.forgotten = {"gone"}
    project.disallowed = {"Forbidden"}
    project.dates = {"birthday"}
    add_project(connection, receiver, project)
    calls = [track(number, f"u{number}", n=number) for number in range(1000)]
    calls[7] = track(7, "x" * 53)
    calls[70] = track(70, "u70", email="no address")
    calls[77] = {**track(77), "userId": None, "anonymousId": "a"}
    calls[100] = track(100, "conflicting")
    calls[200] = track(200, "gone")
    calls[300] = track(300, "u300") | {"event": "Forbidden"}
    calls[400] = track(400, "u400", birthday="soon")
    calls[401] = track(401, "u401", birthday="2026-03-04T10:00:00.000Z")
    calls[500] = track(500, "u500", refuse="json")
    calls[600] = track(600, "u600", text="x" * 32_001)
    land(connection, calls)
    deliver(database, "crm")
    assert dead_reasons(connection) == {
        "t-7": "invalid_user_id",
        "t-70": "invalid_email",
        "t-77": "no_user",
        "t-100": "conflict",
        "t-200": "forgotten",
        "t-300": "disallowed",
        "t-400": "RequestFieldsTypesMismatched",
        "t-500": "BadJsonBody",
        "t-600": "long_text",
    }
    assert set(project.events) == {call["messageId"] for call in calls} - dead_reasons(connection).keys()
    assert max(project.tried.values()) <= 11
    assert project.events["t-401"]["dataFields"]["birthday"] == "2026-03-04 10:00:00 +00:00"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"refuse": "json"}, "BadJsonBody"),
        ({"refuse": "data"}, "invalidData"),
        ({"birthday": "soon"}, "RequestFieldsTypesMismatched"),
    ],
)
def test_a_bad_update_of_a_user_drops_no_other_update(
    database: Database, connection: psycopg.Connection, receiver: Receiver, bad: dict[str, str], reason: str
) -> None:
    """Several updates go as one, and the answer names the user or the field."""
    project = IterableProject()
    project.dates = {"birthday"}
    add_project(connection, receiver, project)
    calls = [identify(n, f"u{n}", n=n) for n in range(100)]
    calls[10:10] = [identify(200, "u1", plan="pro"), identify(201, "u1", **bad), identify(202, "u1", plan="team")]
    land(connection, calls)
    deliver(database, "crm")
    assert dead_reasons(connection) == {"i-201": reason}
    assert project.profiles == {f"u{n}": {"n": n} | ({"plan": "team"} if n == 1 else {}) for n in range(100)}
    assert len(project.bodies) < 25


def test_answers_that_name_one_bad_event_cost_no_more_than_halving(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Each event goes as often as halving needs, and no more."""
    project = IterableProject()
    add_project(connection, receiver, project)
    calls = [track(n, f"u{n}", **({"refuse": "json"} if n % 25 == 0 else {})) for n in range(1000)]
    land(connection, calls)
    deliver(database, "crm")
    assert set(dead_reasons(connection)) == {f"t-{n}" for n in range(0, 1000, 25)}
    assert set(dead_reasons(connection).values()) == {"BadJsonBody"}
    assert len(project.events) == 960
    assert max(project.tried.values()) <= 11


@pytest.mark.parametrize(
    ("batch", "answer", "restarts"),
    [
        (2, LOST, False),
        (2, HALF, True),
        (1000, HALF, False),
        (1000, None, True),
        pytest.param(2, HALF, False, marks=pytest.mark.heavy),
        pytest.param(2, None, True, marks=pytest.mark.heavy),
        pytest.param(1000, LOST, False, marks=pytest.mark.heavy),
        pytest.param(1000, HALF, True, marks=pytest.mark.heavy),
    ],
)
def test_of_ten_updates_of_one_user_the_last_values_win(  # noqa: PLR0917 - fixtures
    database: Database,
    connection: psycopg.Connection,
    receiver: Receiver,
    batch: int,
    answer: Respond | None,
    restarts: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every division into batches, with a failure at any request, or a worker that loses its commit there."""
    monkeypatch.setattr("loader.destinations.iterable.BATCH_ITEMS", batch)
    project = IterableProject()
    add_project(connection, receiver, project)
    place = requests = 0
    while place <= requests:
        # Events and updates of another user stand between them, so the requests have another order than the calls.
        users = {"u": f"u{place}", "o": f"o{place}"}
        expected: dict[str, dict[str, int]] = {user: {} for user in users.values()}
        calls: Calls = []
        for number, kind in enumerate("uEuuouEouuEuuouu"):
            if kind == "E":
                calls.append(track(place * 100 + number, users["u"], n=number))
            else:
                traits = {"level": number, f"field{number % 3}": number}
                calls.append(identify(place * 100 + number, users[kind], **traits))
                expected[users[kind]] |= traits
        begin = len(project.bodies)

        def disturb(_: str, __: dict[str, Any], at: int = begin + place) -> Respond | None:
            if len(project.bodies) != at:
                return None
            if restarts:
                connection.execute(END_CONNECTIONS)
            return answer

        # At place 0 nothing happens.
        project.disturb = disturb
        land(connection, calls)
        with suppress(psycopg.OperationalError):
            deliver(database, "crm")
        deliver(database, "crm")
        assert {user: project.profiles[user] for user in expected} == expected, place
        requests = requests or len(project.bodies)
        place += 1
    assert requests >= 5
    assert conserved(connection, "crm")["delivered"] == 16 * place


def test_a_retried_dead_update_does_not_overwrite_values_of_later_updates(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The worker tries the update of an unknown user again after the user has come with newer values."""
    clock = MovingClock()
    project = IterableProject("email", clock.seconds)
    add_project(connection, receiver, project)
    for calls in (
        [identify(1, plan="free", city="Rome"), identify(2, "u2", plan="free")],
        [identify(3, email="a@example.com", plan="pro"), identify(4, "u3", plan="free")],
        [identify(5, email=" a@example.com", level=1, plan="team")],
    ):
        land(connection, calls)
        deliver(database, "crm", clock=clock)
    assert set(dead_reasons(connection)) == {"i-1", "i-2", "i-4"}
    clock.move(61)
    deliver(database, "crm", clock=clock)
    assert set(dead_reasons(connection)) == {"i-2", "i-4"}
    assert project.profiles == {"a@example.com": {"plan": "team", "city": "Rome", "level": 1}}
    assert conserved(connection, "crm") == {"delivered": 3, "filtered": 0, "repeated": 0, "dead": 2}


def test_users_who_are_joined_in_one_batch_go_in_two_requests(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A request never has a user twice, by the address or by the id."""
    project = IterableProject()
    add_project(connection, receiver, project)
    land(
        connection,
        [
            {**identify(1, email="a@example.com", n=1), "userId": None, "anonymousId": "x"},
            identify(2, "u1", n=2),
            identify(3, "u1", email="a@example.com", n=3),
            identify(4, "u1", email="b@example.com", n=4),
        ],
    )
    deliver(database, "crm")
    updates = [body["users"] for path, body in project.bodies if path == "/api/users/bulkUpdate"]
    assert [[user["dataFields"]["n"] for user in users] for users in updates] == [[1, 2], [3], [4]]


def test_the_limits_of_the_bulk_endpoints_are_respected(
    database: Database, connection: psycopg.Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than five requests a second for profiles and ten for events, and none over 4 MB."""
    monkeypatch.setattr("loader.destinations.iterable.BATCH_ITEMS", 5)
    clock = MovingClock()
    project = IterableProject(seconds=clock.seconds)
    add_project(connection, receiver, project)
    calls = [identify(n, f"u{n}", n=n) for n in range(60)] + [track(n, f"u{n}") for n in range(150)]
    land(connection, calls)
    deliver(database, "crm", clock=clock)
    for path, most in (("/api/users/bulkUpdate", 5), ("/api/events/trackBulk", 10)):
        times = project.times[path]
        assert len(times) >= 12
        assert all(sum(start <= each < start + 0.999 for each in times) <= most for start in times)


def test_a_request_stays_below_four_megabytes(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The project checks each request."""
    project = IterableProject()
    add_project(connection, receiver, project)
    land(connection, [track(n, text="x" * 30_000) for n in range(300)])
    deliver(database, "crm")
    assert len(project.events) == 300
    assert len(project.bodies) == 3


def test_events_of_iterable_never_go_back(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The marks of the event decide, and no filter removes them before."""
    project = IterableProject()
    receiver.answer = project.answer
    new_destination(
        connection,
        "iterable",
        name="crm",
        url=receiver.url,
        key="env:DESTINATION_KEY",
        filters={"drop": ["context.integration", "native"], "native": True},
    )
    land(
        connection,
        [
            track(1) | {"native": {"eventName": "emailSend"}},
            track(2) | {"messageId": "iterable-0123"},
            track(3) | {"context": {"integration": {"name": "Iterable"}}},
            track(4),
        ],
    )
    deliver(database, "crm")
    assert list(project.events) == ["t-4"]
    assert conserved(connection, "crm") == {"delivered": 1, "filtered": 3, "repeated": 0, "dead": 0}


def test_events_that_a_project_reports_go_to_no_project(
    database: Database, settings: Settings, connection: psycopg.Connection, receiver: Receiver, tmp_path: Path
) -> None:
    """Each project gets the calls of the app. The events that a project reports go to no project."""
    first, second = IterableProject(), IterableProject()
    add_project(connection, receiver, first)
    with receiving() as other:
        other.answer = second.answer
        new_destination(connection, "iterable", name="other", url=other.url, key="env:DESTINATION_KEY")
        land(connection, [track(1), identify(2)])
        deliver(database, "crm")
        deliver(database, "other")
        webhook = {"email": "a@example.com", "eventName": "emailOpen", "dataFields": {"campaignId": 1}}
        with database.begin() as control:
            write_key = add_key(control, "Iterable")
        with collecting(settings) as collector:
            assert collector.post("/webhooks/iterable", webhook, headers={"X-Write-Key": write_key}).status == 200
        # The export of a project has the custom events that it was sent.
        sent = first.events["t-1"]
        row = {"eventName": sent["eventName"], "userId": sent["userId"], "createdAt": "2026-03-10 16:03:06 +00:00"}
        (tmp_path / "customEvent.json").write_text(json.dumps(row) + "\n")
        export = ("load", "--format", "iterable-export", str(tmp_path / "customEvent.json"))
        assert loader_here(settings)(*export).returncode == 0
        fill_tracks(connection)
        assert connection.execute("select count(*) from raw.events").fetchone() == (4,)
        for name in ("crm", "other"):
            deliver(database, name)
            assert conserved(connection, name) == {"delivered": 2, "filtered": 2, "repeated": 0, "dead": 0}
    assert list(first.events) == list(second.events) == ["t-1"]


def test_a_forgotten_user_is_refused_once_and_never_sent_again(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The database keeps a digest of the user's keys, and no key."""
    project = IterableProject()
    project.forgotten = {"gone"}
    add_project(connection, receiver, project)
    land(connection, [track(1, "gone"), track(2, "here")])
    deliver(database, "crm")
    land(connection, [track(3, "gone"), identify(4, "gone", plan="pro"), track(5, "here")])
    deliver(database, "crm")
    assert dead_reasons(connection) == {"t-1": "forgotten"}
    sent = [entry.get("userId") for _, body in project.bodies for entry in body.get("events", body.get("users"))]
    assert Counter(sent) == {"gone": 1, "here": 2}
    assert conserved(connection, "crm") == {"delivered": 2, "filtered": 2, "repeated": 0, "dead": 1}


def test_an_event_of_an_unknown_user_is_retried_for_half_an_hour(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The profile may be on its way. After three more tries a person decides."""
    project = IterableProject()
    project.unknown = {"a@example.com", "b@example.com"}
    add_project(connection, receiver, project)
    land(connection, [track(1, email="a@example.com"), track(2, email="b@example.com")])
    clock = MovingClock()
    deliver(database, "crm", clock=clock)
    assert dead_reasons(connection) == {"t-1": "notFound", "t-2": "notFound"}
    clock.move(61)
    project.unknown = {"b@example.com"}
    deliver(database, "crm", clock=clock)
    assert dead_reasons(connection) == {"t-2": "notFound"}
    for seconds in (301, 1801, 86_400):
        clock.move(seconds)
        deliver(database, "crm", clock=clock)
    tries = [body for _, body in project.bodies if any(e["id"] == "t-2" for e in body["events"])]
    assert len(tries) == 4
    assert conserved(connection, "crm")["dead"] == 1


def test_a_key_with_fewer_failures_than_items_is_sent_alone(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Only the items that fail alone are dead."""
    project = IterableProject()
    add_project(connection, receiver, project)

    def disturb(_: str, body: dict[str, Any]) -> Respond | None:
        bad = [event for event in body["events"] if event["id"] == "t-2"]
        if not bad:
            return None
        return Respond(200, b'{"code": "Success", "failedUpdates": {"invalidDataUserIds": ["u1"]}}')

    project.disturb = disturb
    land(connection, [track(1), track(2), track(3), track(4, "u2")])
    deliver(database, "crm")
    assert dead_reasons(connection) == {"t-2": "invalidData"}
    assert set(project.events) == {"t-1", "t-3"}
    assert conserved(connection, "crm") == {"delivered": 3, "filtered": 0, "repeated": 0, "dead": 1}


@pytest.mark.parametrize(
    ("project", "sent"),
    [
        ("hybrid", {"email": "a@example.com", "userId": "u1"}),
        ("userid", {"userId": "u1"}),
        ("email", {"email": "a@example.com", "userId": "u1"}),
    ],
)
def test_each_type_of_project_gets_the_keys_it_knows(
    database: Database, connection: psycopg.Connection, receiver: Receiver, project: str, sent: dict[str, str]
) -> None:
    """In a project of user ids, the address is a field like any other."""
    running = IterableProject(project)
    add_project(connection, receiver, running)
    land(connection, [identify(1, "u1", email="a@example.com", plan="pro")])
    deliver(database, "crm")
    [(_, body)] = running.bodies
    [user] = body["users"]
    assert {name: user[name] for name in ("email", "userId") if name in user} == sent
    assert ("email" in user["dataFields"]) == (project == "userid")


@pytest.mark.parametrize("project", ["hybrid", "userid"])
def test_hybrid_and_user_id_projects_make_a_user_of_any_key(
    database: Database, connection: psycopg.Connection, receiver: Receiver, project: str
) -> None:
    """An event needs no profile before it, so nothing waits."""
    clock = MovingClock()
    running = IterableProject(project, clock.seconds)
    add_project(connection, receiver, running)
    land(connection, [track(1, "unknown"), identify(2, "new", email="new@example.com"), track(3, "new")])
    deliver(database, "crm", clock=clock)
    assert set(running.events) == {"t-1", "t-3"}
    assert set(running.profiles) == ({"new"} if project == "userid" else {"new@example.com"})
    assert clock.seconds() < 5


def test_an_email_project_makes_users_of_addresses_alone(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The address identifies the user and gets the last user id. A lone user id finds a user, and makes none."""
    clock = MovingClock()
    project = IterableProject("email", clock.seconds)
    add_project(connection, receiver, project)
    land(connection, [identify(1, "first", email="a@example.com"), identify(2, "nobody", plan="pro")])
    deliver(database, "crm", clock=clock)
    clock.move(3600)
    land(connection, [identify(3, "second", email="a@example.com"), identify(4, "second", plan="pro")])
    land(connection, [track(5, "second"), track(6, "nobody")])
    deliver(database, "crm", clock=clock)
    assert project.profiles == {"a@example.com": {"plan": "pro"}}
    assert project.user_ids["second"] == "a@example.com"
    assert set(project.events) == {"t-5"}
    assert dead_reasons(connection) == {"i-2": "notFound", "t-6": "notFound"}


def test_an_email_project_makes_users_of_user_ids_on_request(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Iterable gives such a user a placeholder for the address."""
    clock = MovingClock()
    project = IterableProject("email", clock.seconds)
    add_project(connection, receiver, project, prefer_user_id=True)
    land(connection, [identify(1, "u1", plan="pro"), track(2, "u1")])
    deliver(database, "crm", clock=clock)
    assert project.profiles == {"u1@placeholder.email": {"plan": "pro"}}
    assert set(project.events) == {"t-2"}
    assert dead_reasons(connection) == {}


def test_a_200_without_iterables_json_is_tried_again(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The page of a proxy has the status 200 too, and accepts nothing."""
    project = IterableProject()
    add_project(connection, receiver, project)
    answers = [Respond(200, b"<html>Welcome</html>", {"Content-Type": "text/html"}), Respond(200, b"")]
    project.disturb = lambda _, __: answers.pop() if answers else None
    land(connection, [track(1)])
    deliver(database, "crm")
    assert [path for path, _ in project.bodies] == ["/api/events/trackBulk"] * 3
    assert list(project.events) == ["t-1"]
    assert conserved(connection, "crm")["delivered"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        Respond(400, b'{"code": "a\\u0000b"}'),
        Respond(200, b'{"failedUpdates": {"a\\u0000bUserIds": ["u1"]}}'),
        Respond(200, b'{"disallowedEventNames": ["Played"], "createdFields": ["\\u0000", {"\\u0000": 1}]}'),
        Respond(400, b'{"code": "' + b"x" * 100_000 + b'"}'),
        Respond(400, b"\x00\xff"),
    ],
)
def test_an_answer_that_the_database_cannot_hold_stops_nothing(
    database: Database, connection: psycopg.Connection, receiver: Receiver, answer: Respond
) -> None:
    """The event is dead, with a reason of a readable length."""
    project = IterableProject()
    add_project(connection, receiver, project)
    project.disturb = lambda _, __: answer
    land(connection, [track(1)])
    deliver(database, "crm")
    [reason] = dead_reasons(connection).values()
    assert len(reason) <= 100


def test_a_replay_and_the_live_delivery_share_the_limits(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The limits are those of the project."""
    clock, shared = MovingClock(), Shared()
    project = IterableProject(seconds=clock.seconds)
    add_project(connection, receiver, project)
    found = find_destination(connection, "crm")
    land(connection, [identify(1)])
    deliver(database, "crm", clock=clock, shared=shared)
    number = add_replay(connection, found.id, [], {"since": "2020-01-01T00:00:00Z"})
    for turn in range(3):
        deliver(database, "crm", clock=clock, shared=shared, replay=number, rounds=1)
        connection.execute(
            "update raw.delivery_cursors set finished_at = null, from_snapshot = '1:1:' where replay = 1"
        )
        land(connection, [identify(turn + 2)])
        deliver(database, "crm", clock=clock, shared=shared)
    times = project.times["/api/users/bulkUpdate"]
    assert [round(each, 3) for each in times] == [round(n * 0.2, 3) for n in range(len(times))]
    assert len(times) == 7


def test_a_refused_key_pauses_the_delivery_without_dead_letters(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The status decides, although the body says success."""
    project = IterableProject()
    add_project(connection, receiver, project)
    answers = [Respond(401, b'{"code": "Success"}')] * 2
    project.disturb = lambda _, __: answers.pop() if answers else None
    land(connection, [track(1)])
    clock = MovingClock()
    deliver(database, "crm", clock=clock)
    assert clock.seconds() >= 600
    assert list(project.events) == ["t-1"]
    assert dead_reasons(connection) == {}
