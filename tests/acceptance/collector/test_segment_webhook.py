"""Segment's webhooks: single events and batches, signed or not, with a key in any place."""

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.collector_thread import Collecting, Entrance, Reply, assert_refused, assert_taken

PATH = "/webhooks/segment"
SECRET = "shhh"


def event(**fields: Any) -> dict[str, Any]:
    """Return an event as Segment forwards it."""
    return {
        "version": 2,
        "type": "track",
        "event": "Email Opened",
        "userId": "u1",
        "messageId": "m1",
        "receivedAt": "2026-01-02T03:04:05.678Z",
    } | fields


def compact(body: Any) -> str:
    """Return JSON as JavaScript writes it."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def signature(body: Any) -> dict[str, str]:
    """Return the header with Segment's signature."""
    return {"X-Signature": hmac.new(SECRET.encode(), compact(body).encode(), hashlib.sha1).hexdigest()}


@pytest.fixture(scope="module")
def signing(module_entrance: Entrance) -> Iterator[Collecting]:
    """A collector that accepts only signed webhooks."""
    with module_entrance.with_settings(
        segment_secret=type(module_entrance.settings.segment_secret)(SECRET)
    ) as collector:
        yield collector


def send(entrance: Entrance, body: Any, collector: Collecting | None = None, **headers: str) -> Reply:
    """Send a webhook with a valid key."""
    return (collector or entrance.collector).post(PATH, body, headers={"Authorization": entrance.key} | headers)


def test_a_forwarded_event_lands_as_it_is(entrance: Entrance) -> None:
    """Segment's time of receipt is kept."""
    assert_taken(send(entrance, event()))
    assert_taken(entrance.collector.post(f"{PATH}/", event(messageId="m2"), key=entrance.key))
    assert entrance.landed() == [event(), event(messageId="m2")]
    assert entrance.landed("to_char(received_at at time zone 'utc', 'HH24:MI:SS.MS')") == ["03:04:05.678"] * 2


def test_the_good_events_of_a_batch_land_and_bad_events_are_kept(entrance: Entrance) -> None:
    """Each bad event has its reason and its bytes, with white space."""
    items = [event(), event(userId=None), 7, event(messageId="m2")]
    assert_taken(send(entrance, json.dumps(items, indent=2)))
    assert entrance.landed("message_id") == ["m1", "m2"]
    assert sorted(entrance.refused()) == ["no_user_anon_id", "not_object"]
    assert entrance.refused("entrance") == ["segment-webhook"] * 2


def test_the_largest_batch_of_segment_lands(entrance: Entrance) -> None:
    """A batch of 4,000 events has more bytes than the tracking API accepts."""
    items = [event(messageId=f"m{number}", properties={"x": "y" * 200}) for number in range(4000)]
    assert_taken(send(entrance, items))
    assert len(entrance.landed()) == 4000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (event(userId=None), "no_user_anon_id"),
        ([event(userId=None)], "no_user_anon_id"),
        ({"type": "delete", "userId": "u1"}, "bad_request"),
        ("{", "truncated_line"),
        ("[{}", "invalid_json"),
        ("", "bad_request"),
        ([], "bad_request"),
        ([[]], "not_object"),
    ],
)
def test_a_webhook_without_a_valid_event_gets_an_error(entrance: Entrance, body: Any, code: str) -> None:
    """The status is 400, and Segment gives up."""
    reply = send(entrance, body)
    assert reply.status == 400
    assert entrance.landed() == []
    if body in ("", []):
        assert_refused(reply, 400, code)
        assert entrance.refused() == []
    else:
        assert entrance.refused() == [reply.json["code"]]


@pytest.mark.parametrize(
    "form",
    [
        "{key}",
        "Bearer {key}",
        "Token {key}",
        "Basic {key}",
        "basic of {key}",
        "basic of {key}:",
        "basic of segment:{key}",
    ],
)
def test_the_key_may_be_in_authorization_in_any_form(entrance: Entrance, form: str) -> None:
    """The form depends on the person who configured the webhook."""
    text = form.replace("{key}", entrance.key)
    if text.startswith("basic of "):
        text = "Basic " + b64encode(text.removeprefix("basic of ").encode()).decode()
    assert_taken(entrance.collector.post(PATH, event(), headers={"Authorization": text}))


def test_the_key_may_be_in_another_header_or_in_the_query(entrance: Entrance) -> None:
    """An Authorization header for another party may be present."""
    other = {"Authorization": "Bearer for.the.proxy"}
    assert_taken(entrance.collector.post(PATH, event(), headers=other | {"X-Write-Key": entrance.key}))
    assert_taken(entrance.collector.post(f"{PATH}?writeKey={entrance.other_key}", event(), headers=other))
    with entrance.with_settings(webhook_header="X-Our-Token") as collector:
        assert_taken(collector.post(PATH, event(), headers={"x-our-token": entrance.key}))
    assert entrance.landed("source") == ["iterable", "second", "iterable"]


def test_a_webhook_without_a_known_key_is_refused(entrance: Entrance) -> None:
    """The collector refuses it before it reads the body."""
    for headers in ({}, {"Authorization": "Bearer nobody"}, {"X-Write-Key": "a", "Authorization": "b"}):
        assert_refused(entrance.collector.post(PATH, event(), headers=headers), 401, "invalid_write_key")
    assert entrance.landed() == entrance.refused() == []


def test_answering_as_segment_does_hides_errors(entrance: Entrance) -> None:
    """This covers an unknown key and an event that goes to quarantine."""
    with entrance.with_settings(segment_answers=True) as collector:
        assert_taken(collector.post(PATH, event(), headers={"Authorization": "nobody"}))
        assert_taken(send(entrance, event(userId=None), collector))
    assert entrance.landed() == []
    assert entrance.refused() == ["no_user_anon_id"]


def test_a_signed_webhook_is_accepted(entrance: Entrance, signing: Collecting) -> None:
    """The signature is that of the body as JavaScript writes it. For a batch, it is that of the first event."""
    body = event(event="Émail ✓", properties={"a": [1.5, None, True]})
    assert_taken(send(entrance, compact(body), signing, **signature(body)))
    assert_taken(send(entrance, json.dumps(body, indent=1), signing, **signature(body)))
    assert_taken(send(entrance, compact([body, event(messageId="m2")]), signing, **signature(body)))
    assert_taken(send(entrance, json.dumps([body, event(messageId="m3")]), signing, **signature(body)))
    assert sorted(entrance.landed("message_id")) == ["m1", "m1", "m1", "m1", "m2", "m3"]


def test_the_signature_of_segments_example_is_valid(entrance: Entrance, signing: Collecting) -> None:
    """The example asks for a user's deletion, so it is not an event. Its signature is valid."""
    body = '{"type":"delete","userId":"019mr8mf4r","timestamp":"2012-12-02T00:30:08.276Z"}'
    reply = send(entrance, body, signing, **{"X-Signature": "ec890cbd94f0c6f339496c0a426896ffb0bada93"})
    assert_refused(reply, 400, "bad_request")
    assert len(entrance.refused()) == 1


@pytest.mark.parametrize("given", [{}, {"X-Signature": ""}, {"X-Signature": "0" * 40}, signature(event(userId="u2"))])
def test_an_unsigned_webhook_is_refused(entrance: Entrance, signing: Collecting, given: dict[str, str]) -> None:
    """This holds with a valid key and with the signature of another body. No part of it is kept."""
    assert_refused(send(entrance, compact(event()), signing, **given), 401, "bad_signature")
    assert entrance.landed() == entrance.refused() == []


def test_a_webhook_over_the_limit_is_refused(entrance: Entrance) -> None:
    """The answer has the reason."""
    with entrance.with_settings(webhook_bytes=100) as collector:
        assert_refused(send(entrance, event(), collector), 400, "payload_too_large")
