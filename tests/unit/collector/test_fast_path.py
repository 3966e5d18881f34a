"""The requests of the fast path: small and complete requests of every route, and no others."""

import gzip
import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest

from loader.buffer.backlog import Done
from loader.collector.fast_path import FastPath
from loader.collector.http import SUCCESS, Response
from loader.collector.routes import event_routes
from loader.errors import UnavailableError
from loader.events.model import Delivery, Event, Refused
from loader.settings import Settings

KEY = "key"
BASIC = (b"authorization", b"Basic " + b64encode(b"key:"))
CALL = {"type": "track", "event": "Email Opened", "userId": "u", "messageId": "m"}
BATCH = {"batch": [CALL, CALL | {"messageId": "n"}]}
WEBHOOK = {"email": "a@example.com", "eventName": "emailOpen", "dataFields": {"messageId": "m", "campaignId": 1}}


class Keys:
    """A single write key in use."""

    def find(self, key: str) -> str | None:
        """Return the source of a key."""
        return "iterable" if key == KEY else None


class Writer:
    """A writer that keeps deliveries and answers on request."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Delivery, Done]] = []
        self.is_full = False

    def delivery(self, source: str, entrance: str, events: list[Event], refused: list[Refused]) -> Delivery:
        """Return messages as a delivery."""
        return Delivery(source, entrance, events, refused, None)  # type: ignore[arg-type]

    def submit(self, delivery: Delivery, done: Done) -> None:
        """Keep a delivery."""
        if self.is_full:
            raise UnavailableError("too much is waiting")
        self.submitted.append((delivery, done))


@pytest.fixture
def writer() -> Writer:
    """A writer with room in its queue."""
    return Writer()


Take = Callable[..., list[Response] | None]


@pytest.fixture
def take(writer: Writer) -> Take:
    """Offer a request to the fast path; return the responses so far, or None if the request was left."""
    path_of_requests = FastPath(writer, Keys(), event_routes(Settings.model_construct()))  # type: ignore[arg-type]

    def offer(path: str, body: Any, *headers: tuple[bytes, bytes], method: str = "POST") -> list[Response] | None:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        scope: dict[str, Any] = {
            "path": path,
            "method": method,
            "query_string": b"",
            "client": ("192.0.2.1", 1),
            "headers": [*headers, (b"content-length", b"%d" % len(sent))],
        }
        route = path_of_requests.find(scope)
        responses: list[Response] = []
        return responses if route and path_of_requests.take(route, scope, sent, responses.append) else None

    return offer


@pytest.mark.parametrize(
    ("path", "body", "entrance", "events"),
    [
        ("/v1/track", CALL, "tracking", 1),
        ("/v1/t/", CALL, "tracking", 1),
        ("/v1/identify", {"userId": "u"}, "tracking", 1),
        ("/v1/batch", BATCH, "tracking", 2),
        ("/v1/import", BATCH, "tracking", 2),
        ("/webhooks/iterable", WEBHOOK, "iterable-webhook", 1),
        ("/webhooks/segment", CALL, "segment-webhook", 1),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"x-request-id", b"7"), (b"x-forwarded-for", b"198.51.100.7")),
        ((b"origin", b"https://shop.example"),),
        ((b"content-encoding", b"gzip"),),
    ],
    ids=["plain", "behind a proxy", "from a browser", "gzip"],
)
def test_the_fast_path_takes_small_complete_requests_of_every_route(  # noqa: PLR0917 - each is a parameter of the test
    take: Take,
    writer: Writer,
    path: str,
    body: object,
    entrance: str,
    events: int,
    headers: tuple[tuple[bytes, bytes], ...],
) -> None:
    """The answer comes when the events are durable, and not before."""
    sent = json.dumps(body).encode()
    responses = take(path, gzip.compress(sent) if (b"content-encoding", b"gzip") in headers else sent, BASIC, *headers)
    assert responses == []
    [(delivery, done)] = writer.submitted
    assert (delivery.source, delivery.entrance, len(delivery.events)) == ("iterable", entrance, events)
    done(None)
    assert responses == [SUCCESS]


def test_the_fast_path_accepts_a_write_key_in_the_body(take: Take, writer: Writer) -> None:
    """The event does not contain the key."""
    assert take("/v1/track", CALL | {"writeKey": KEY}) == []
    assert take("/v1/batch", BATCH | {"writeKey": KEY}) == []
    assert all(b'"key"' not in event.payload for delivery, _ in writer.submitted for event in delivery.events)


def test_an_event_from_a_browser_gets_the_address_of_the_browser(take: Take, writer: Writer) -> None:
    """The application adds the same address."""
    take("/v1/track", CALL, BASIC, (b"origin", b"https://shop.example"))
    [(delivery, _)] = writer.submitted
    assert json.loads(delivery.events[0].payload)["context"]["ip"] == "192.0.2.1"


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/track", CALL, ()),
        ("/v1/track", CALL, ((b"authorization", b"Basic " + b64encode(b"other:")),)),
        ("/webhooks/iterable", WEBHOOK, ()),
        ("/webhooks/iterable", WEBHOOK | {"dataFields": 1}, (BASIC,)),
        ("/v1/track", b"no JSON", (BASIC,)),
        ("/v1/track", CALL, (BASIC, (b"content-encoding", b"br"))),
        ("/v1/track", CALL, (BASIC, (b"transfer-encoding", b"chunked"))),
        ("/v1/track", CALL, (BASIC, (b"expect", b"100-continue"))),
        ("/v1/batch", {"batch": [CALL | {"writeKey": KEY}, CALL | {"writeKey": "other"}]}, ()),
        ("/v1/batch", {"batch": [CALL | {"properties": {"a": "x" * 61_000}}]}, (BASIC,)),
        ("/v1/nothing", CALL, (BASIC,)),
    ],
)
def test_large_unusual_and_invalid_requests_are_left_to_the_application(
    take: Take, writer: Writer, path: str, body: object, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    """The fast path stores no part of such a request."""
    assert take(path, body, *headers) is None
    assert take(path, body, *headers, method="PUT") is None
    assert writer.submitted == []


def test_a_full_queue_leaves_a_request_to_the_application(take: Take, writer: Writer) -> None:
    """The application answers 503."""
    writer.is_full = True
    assert take("/v1/track", CALL, BASIC) is None


def test_events_that_cannot_be_made_durable_are_answered_with_503(take: Take, writer: Writer) -> None:
    """The sender tries again."""
    responses = take("/v1/track", CALL, BASIC)
    [(_, done)] = writer.submitted
    done(UnavailableError("the disk is full"))
    assert responses is not None
    assert [response.status for response in responses] == [503]
