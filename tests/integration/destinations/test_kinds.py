"""Each kind of destination sends its own requests: Segment's API, signed webhooks and files."""

import gzip
import hashlib
import hmac
import json
import stat
from base64 import b64encode
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from loader.destinations.clock import SystemClock
from loader.events.timestamps import iso_text
from loader.postgres.database import Database, open_database
from loader.raw.dead_letters import list_letters
from loader.raw.delivery_windows import add_replay
from loader.raw.destinations import find_destination
from loader.raw.sources import add_key
from loader.runtime import metrics
from loader.settings import Settings
from tests.conftest import loader_here, own_database
from tests.support.collector_thread import collecting
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
    new_destination,
)
from tests.support.delivery_fixtures import KEY
from tests.support.receivers import Received, Receiver, Respond, in_turn
from tests.support.waiting import wait_until

# The second secret has no padding, as some tools write secrets.
SECRETS = (
    "whsec_" + b64encode(b"first secret of a webhook").decode(),
    "whsec_" + b64encode(b"the second one").decode().rstrip("="),
)


def verify(request: Received, secret: str, *, extra: bytes = b"") -> bool:
    """Return whether the package of Standard Webhooks accepts a request, as a receiver with this secret does."""
    try:
        Webhook(secret).verify(request.body + extra, request.headers)
    except WebhookVerificationError:
        return False
    return True


def test_segments_api_gets_batches_with_the_key_and_the_time(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Calls keep their parts byte for byte, and get the id and the time of tracks."""
    add_segment(connection, receiver)
    payload = (
        '{"type": "track", "event": "Order", "userId": "u", "anonymousId": "a", "messageId": "m",'
        ' "timestamp": "2026-03-04T10:00:00.000Z", "sentAt": "2026-03-04T10:05:00.000Z",'
        ' "context": {"ip": "192.0.2.1"}, "properties": {"price": 1.10, "count": 123456789012345678901234567890},'
        ' "native": {"dataFields": {}}, "receivedAt": "2026-03-04T10:06:00.000Z"}'
    )
    connection.execute(
        "insert into raw.events (source, collection, message_id, payload, received_at)"
        " values ('iterable', 'order', 'm', %s, '2026-03-04T11:00:00Z')",
        [payload],
    )
    fill_tracks(connection)
    clock = MovingClock()
    deliver(database, clock=clock)
    [request] = receiver.requests
    assert request.path == "/v1/batch"
    assert request.headers["authorization"] == f"Basic {b64encode(f'{KEY}:'.encode()).decode()}"
    assert request.headers["user-agent"].startswith("iterable-warehouse/")
    assert request.json["sentAt"] == clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    [call] = request.calls
    via = call["context"].pop("via")
    row = connection.execute("select warehouse_id::text from raw.cluster").fetchone()
    assert row == (via[0],)
    assert call == {
        "type": "track",
        "event": "Order",
        "userId": "u",
        "anonymousId": "a",
        "messageId": "m",
        # The sender's clock was 55 minutes behind.
        "timestamp": "2026-03-04T10:55:00.000Z",
        "context": {"ip": "192.0.2.1"},
        "properties": {"price": 1.1, "count": 123456789012345678901234567890},
    }
    assert b"1.10" in request.body
    assert b"123456789012345678901234567890" in request.body


@pytest.mark.parametrize("batch", [0, 3])
def test_a_webhook_is_signed_with_every_secret(
    database: Database, connection: psycopg.Connection, receiver: Receiver, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event a request, or a list; a repeated webhook has the same id."""
    for number, secret in enumerate(SECRETS):
        monkeypatch.setenv(f"HOOK_{number}", secret)
    new_destination(
        connection,
        "webhook",
        url=f"{receiver.url}/hook?token=1",
        secrets=["env:HOOK_0", "env:HOOK_1"],
        segment_signature="env:DESTINATION_KEY",
        **({"batch": batch} if batch else {}),
    )
    land_many(connection, ["a", "b", "ü"])
    fill_tracks(connection)
    receiver.answer = in_turn(Respond(500))
    deliver(database)
    assert receiver.taken_ids == ["a", "b", "ü"]
    assert {request.path for request in receiver.requests} == {"/hook?token=1"}
    for request in receiver.requests:
        assert verify(request, SECRETS[0])
        assert verify(request, SECRETS[1])
        assert not verify(request, SECRETS[0], extra=b" ")
        assert not verify(request, "whsec_" + b64encode(b"third").decode())
        assert request.headers["x-signature"] == hmac.new(KEY.encode(), request.body, hashlib.sha1).hexdigest()
    first, again = receiver.requests[:2]
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    assert first.body == again.body
    if not batch:
        digest = hashlib.sha256("ü".encode()).hexdigest()
        assert [request.headers["webhook-id"] for request in receiver.requests[1:]] == ["a", "b", digest]


def test_a_secret_is_replaced_while_every_webhook_verifies(
    database: Database, connection: psycopg.Connection, receiver: Receiver, tmp_path: Path
) -> None:
    """Its place has both secrets, a line each, until the receiver knows the new secret."""
    place = tmp_path / "secret"
    new_destination(connection, "webhook", url=receiver.url, secrets=[f"file:{place}"])
    old, new = SECRETS
    for name, lines, verified in (
        ("a", f"{old}\n", [True, False]),
        ("b", f"{old}\n{new}\n", [True, True]),
        ("c", f"{old}\r\n\n {new}\r\n", [True, True]),
        ("d", new, [False, True]),
    ):
        place.write_text(lines)
        land_many(connection, [name])
        fill_tracks(connection)
        deliver(database)
        assert [verify(receiver.requests[-1], secret) for secret in SECRETS] == verified
    assert receiver.taken_ids == ["a", "b", "c", "d"]


def test_a_webhook_over_the_limit_goes_without_iterables_body_or_is_dead(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """The receiver says so with 413."""
    new_destination(connection, "webhook", url=receiver.url, filters={"native": True})
    land_calls(
        connection,
        {"messageId": "a", "native": {"x": "x" * 5000}},
        {"messageId": "b", "properties": {"x": "x" * 5000}},
    )
    fill_tracks(connection)
    receiver.answer = lambda request: Respond(413 if len(request.body) > 4000 else 200)
    deliver(database)
    assert receiver.taken_ids == ["a"]
    [letter] = list_letters(connection, find_destination(connection, "cdp").id, 10)
    assert (letter.message_id, letter.status, letter.reason) == ("b", 413, "too_large")


def test_segments_api_may_have_a_smaller_limit_of_its_own(
    database: Database, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """Such a receiver gets a large call without Iterable's own body as well."""
    add_segment(connection, receiver, filters={"native": True})
    land_calls(
        connection,
        {"messageId": "a", "native": {"x": "x" * 5000}},
        {"messageId": "b", "properties": {"x": "x" * 5000}},
        {"messageId": "c", "native": {"x": "x"}},
    )
    fill_tracks(connection)
    receiver.answer = lambda request: Respond(413 if len(request.body) > 4000 else 200)
    deliver(database)
    assert [(call["messageId"], "native" in call) for call in receiver.taken] == [("a", False), ("c", True)]
    [letter] = list_letters(connection, find_destination(connection, "cdp").id, 10)
    assert (letter.message_id, letter.status, letter.reason) == ("b", 413, "too_large")


def test_files_have_the_layout_of_segments_raw_logs(
    database: Database, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A file for each window, in the folder of its day; no unfinished file stays."""
    new_destination(connection, "files", folder=str(tmp_path / "lake"))
    land_many(connection, ["a", "b"])
    fill_tracks(connection)
    deliver(database)
    land_many(connection, ["c"])
    fill_tracks(connection)
    deliver(database)
    files = sorted((path for path in (tmp_path / "lake").rglob("*") if path.is_file()), key=lambda path: path.name)
    lines = [
        [json.loads(line)["messageId"] for line in gzip.decompress(path.read_bytes()).splitlines()] for path in files
    ]
    assert sorted(lines) == [["a", "b"], ["c"]]
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert {path.parent.relative_to(tmp_path) for path in files} == {
        Path("lake/segment-logs/iterable") / str(int(day.timestamp()) * 1000)
    }
    assert conserved(connection)["delivered"] == 3


def test_a_file_that_is_written_again_replaces_itself(
    database: Database, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A worker that was killed before its commit writes the same file."""
    new_destination(connection, "files", folder=str(tmp_path))
    land_many(connection, ["a", "b"])
    fill_tracks(connection)
    deliver(database)
    [path] = tmp_path.rglob("*.gz")
    content = path.read_bytes()
    path.rename(path.with_name(f".{path.name}"))
    connection.execute(
        "update raw.delivery_cursors set to_snapshot = from_snapshot, from_snapshot = start_snapshot, delivered = 0"
    )
    deliver(database)
    assert [(each.name, each.read_bytes()) for each in tmp_path.rglob("*") if each.is_file()] == [(path.name, content)]


def test_a_replay_of_some_events_leaves_the_other_files_alone(
    database: Database, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Its files have names of their own, although they begin with the same event."""
    found = new_destination(connection, "files", folder=str(tmp_path))
    land_calls(connection, {"messageId": "a"}, {"messageId": "b", "event": "Other"})
    fill_tracks(connection)
    deliver(database)
    [path] = tmp_path.rglob("*.gz")
    content = path.read_bytes()
    number = add_replay(connection, found.id, [], {"since": "2020-01-01T00:00:00Z", "events": ["Email *"]})
    deliver(database, replay=number)
    files = list(tmp_path.rglob("*.gz"))
    assert path.read_bytes() == content
    assert sorted(len(gzip.decompress(each.read_bytes()).splitlines()) for each in files) == [1, 2]


def test_files_load_into_another_warehouse_as_the_same_rows(  # noqa: PLR0917 - fixtures
    database: Database, connection: psycopg.Connection, tmp_path: Path, server: str, home: Path, raw_template: str
) -> None:
    """With the time of the event, which the sender's clock had wrong, and the time of receipt."""
    new_destination(connection, "files", folder=str(tmp_path))
    behind = {"timestamp": "2026-03-04T10:00:00.000Z", "sentAt": "2026-03-04T10:05:00.000Z"}
    logged = {"originalTimestamp": "2026-03-04T09:00:00.000Z", "receivedAt": "2026-03-04T11:00:00.000Z"}
    land_calls(
        connection,
        {"messageId": "a"} | behind,
        {"messageId": "b"} | behind | logged,
        {"messageId": "c", "timestamp": "2026-03-04 10:00:00 +00:00"},
        {"messageId": "d"},
        {"messageId": "e", "type": "identify", "traits": {"x": 1}} | behind,
    )
    connection.execute("update raw.events set received_at = '2026-03-04T11:00:00.123456Z' where message_id <> 'b'")
    connection.execute("update raw.events set received_at = '2026-03-04T11:00:00Z' where message_id = 'b'")
    fill_tracks(connection)
    deliver(database)
    [path] = tmp_path.rglob("*.gz")
    select = "select message_id, received_at, raw.read_call_time(payload, received_at) from raw.events order by 1"
    with own_database(server, home, raw_template) as other, open_database(other) as copy:
        assert loader_here(other)("load", str(path)).returncode == 0
        with copy.connect() as there:
            assert there.execute(select).fetchall() == connection.execute(select).fetchall()


def test_a_folder_that_cannot_be_written_is_tried_again(
    database: Database, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The reason names the folder, and nothing is lost."""
    place = tmp_path / "lake"
    place.write_text("in the way")
    new_destination(connection, "files", folder=str(place))
    land_many(connection, ["a"])
    fill_tracks(connection)

    class Mending(MovingClock):
        def wait(self, stop: object, seconds: float) -> None:
            assert "cannot be written" in str(find_destination(connection, "cdp").last_error)
            place.unlink(missing_ok=True)
            super().wait(stop, seconds)  # type: ignore[arg-type]

    deliver(database, clock=Mending())
    [path] = place.rglob("*.gz")
    assert stat.S_ISREG(path.stat().st_mode)


def test_a_call_that_comes_back_is_answered_and_does_not_land(
    database: Database, settings: Settings, connection: psycopg.Connection
) -> None:
    """By each entrance, with 200, and metrics count it."""
    with database.begin() as control:
        key = add_key(control, "Iterable")
    with collecting(settings) as collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DESTINATION_KEY", key)
        url = f"http://127.0.0.1:{collector.port}"
        new_destination(connection, "segment", url=url, key="env:DESTINATION_KEY")
        land_calls(connection, {"messageId": "a", "context": {"via": ["another"]}}, {"messageId": "b"})
        fill_tracks(connection)
        deliver(database)
        assert conserved(connection)["delivered"] == 2
        assert connection.execute("select count(*) from raw.events").fetchone() == (2,)
        row = connection.execute("select warehouse_id::text from raw.cluster").fetchone()
        assert row is not None
        call = {"type": "track", "event": "E", "userId": "u", "context": {"via": ["x", row[0]]}}
        assert collector.post("/v1/track", call, key=key).status == 200
        assert collector.post("/webhooks/segment", call, headers={"X-Write-Key": key}).status == 200
        other = call | {"context": {"via": ["x"]}}
        assert collector.post("/v1/batch", {"batch": [call, other]}, key=key).status == 200
        assert connection.execute("select count(*) from raw.events").fetchone() == (3,)
        metrics = collector.get("/metrics").body.decode()
        assert "loader_returned_calls_total 5.0" in metrics
        assert 'loader_delivery_events_total{destination="cdp",outcome="delivered"} 2.0' in metrics
        assert 'loader_delivery_requests_total{code="200",destination="cdp"} 1.0' in metrics
        assert 'loader_delivery_paused{destination="cdp"} 0.0' in metrics


def test_two_instances_that_forward_to_each_other_have_each_event_once(
    settings: Settings, server: str, home: Path, raw_template: str
) -> None:
    """Each event is in both, with the time that the first instance gave it, and further rounds send nothing."""
    # Both collectors run in this process, and its counters are common to both and to earlier tests.
    metrics.take_returned()
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        databases, connections, urls = [], [], []
        for name, own in (("A", settings), ("B", stack.enter_context(own_database(server, home, raw_template)))):
            opened = stack.enter_context(open_database(own))
            connection = stack.enter_context(opened.connect(autocommit=True))
            # Both are clones of one database. The instances of a person have ids of their own.
            connection.execute("update raw.cluster set warehouse_id = gen_random_uuid()")
            make_tracks(connection)
            with opened.begin() as control:
                patch.setenv(f"KEY_{name}", add_key(control, "Iterable"))
            collector = stack.enter_context(collecting(own))
            databases.append(opened)
            connections.append(connection)
            urls.append(f"http://127.0.0.1:{collector.port}")
        new_destination(connections[0], "segment", url=urls[1], key="env:KEY_B")
        new_destination(connections[1], "segment", url=urls[0], key="env:KEY_A")
        # The sender's clock was an hour behind.
        late = datetime.now(UTC) - timedelta(hours=1)
        clock = {"timestamp": iso_text(late), "originalTimestamp": iso_text(late), "sentAt": iso_text(late)}
        land_calls(connections[0], {"messageId": "a1"} | clock, {"messageId": "i1", "type": "identify"})
        land_many(connections[0], ids(120))
        land_calls(connections[1], {"messageId": "b1"} | clock, {"messageId": "i2", "type": "identify"})
        land_many(connections[1], ids(120, 200))
        for _ in range(4):
            for opened, connection in zip(databases, connections, strict=True):
                fill_tracks(connection)
                deliver(opened, clock=SystemClock())
        everything = sorted(["a1", "i1", "b1", "i2", *ids(120), *ids(120, 200)])
        for connection in connections:
            landed = connection.execute("select message_id from raw.events").fetchall()
            assert sorted(each for (each,) in landed) == everything
            assert conserved(connection)["delivered"] == len(everything)
            wrong = "select count(*) from iterable.tracks where abs(extract(epoch from now() - timestamp)) > 600"
            assert connection.execute(wrong).fetchone() == (0,)
        returned = "select coalesce(sum(calls), 0) from raw.returned_calls"
        wait_until(
            lambda: sum(each.execute(returned).fetchone()[0] for each in connections) == len(everything),
            "the count of returned calls",
        )
