"""The contract's vectors about HTTP, by their numbers."""

import gzip
import json
from base64 import b64encode
from typing import Any

from loader.raw.sources import key_digest
from tests.support.collector_thread import Entrance, assert_refused, assert_taken

BASE: dict[str, Any] = {
    "type": "track",
    "userId": "u1",
    "messageId": "m1",
    "event": "Email Opened",
    "context": {"library": {"name": "x", "version": "1"}},
    "properties": {},
}


def test_vector_60_integrations_with_all_false_exclude_no_event(entrance: Entrance) -> None:
    """`All: false` does not apply to warehouses."""
    assert_taken(entrance.collector.post("/v1/track", BASE | {"integrations": {"All": False}}, key=entrance.key))
    assert entrance.landed("collection") == ["email_opened"]


def test_vector_61_integrations_can_exclude_calls_from_the_tables(entrance: Entrance) -> None:
    """The field is in the call or in its batch. The calls are in raw and have no collection."""
    excluded = {"integrations": {"Warehouses": {"all": False}}}
    elsewhere = {"integrations": {"Warehouses": {"warehouseIds": ["elsewhere"]}}}
    batch = [BASE | {"messageId": "b"}, BASE | {"messageId": "c", "integrations": {"Warehouses": {"all": True}}}]
    assert_taken(entrance.collector.post("/v1/track", BASE | excluded, key=entrance.key))
    assert_taken(entrance.collector.post("/v1/batch", {"batch": batch} | excluded, key=entrance.key))
    assert_taken(entrance.collector.post("/v1/track", BASE | {"messageId": "d"} | elsewhere, key=entrance.key))
    with entrance.with_settings(segment_warehouse_id="here") as collector:
        assert_taken(collector.post("/v1/track", BASE | {"messageId": "e"} | elsewhere, key=entrance.key))
        assert_taken(collector.post("/webhooks/segment", BASE | {"messageId": "f"} | elsewhere, key=entrance.key))
    assert entrance.landed("collection") == [None, None, "email_opened", "email_opened", None, None]


def test_vector_63_calls_get_the_sent_at_of_their_batch(entrance: Entrance) -> None:
    """Each of the three calls has the batch's `sentAt`."""
    batch = [BASE | {"messageId": f"m{number}"} for number in range(3)]
    body = {"batch": batch, "sentAt": "2026-03-04T15:00:00.000Z"}
    assert_taken(entrance.collector.post("/v1/batch", body, key=entrance.key))
    assert [payload["sentAt"] for payload in entrance.landed()] == ["2026-03-04T15:00:00.000Z"] * 3


def test_vector_64_basic_authentication_is_the_key_and_a_colon(entrance: Entrance) -> None:
    """`YWJjMTIzOg==` is `abc123`."""
    entrance.connection.execute(
        "insert into raw.write_keys (source_id, key_sha256) select id, %s from raw.sources where name = 'Iterable'"
        " on conflict do nothing",
        (key_digest("abc123"),),
    )
    assert b64encode(b"abc123:") == b"YWJjMTIzOg=="
    assert_taken(entrance.collector.post("/v1/track", BASE, headers={"Authorization": "Basic YWJjMTIzOg=="}))
    assert entrance.landed("message_id") == ["m1"]


def test_vector_66_a_call_without_a_user_goes_to_quarantine(entrance: Entrance) -> None:
    """The call goes to quarantine with Segment's own reason."""
    nobody = {name: value for name, value in BASE.items() if name != "userId"}
    assert_refused(entrance.collector.post("/v1/track", nobody, key=entrance.key), 400, "no_user_anon_id")
    assert (entrance.landed(), entrance.refused()) == ([], ["no_user_anon_id"])


def test_vector_67_an_event_of_33_kilobytes_is_refused(entrance: Entrance) -> None:
    """The error has a code and a message."""
    large = BASE | {"properties": {"text": "x" * 33 * 1024}}
    assert_refused(entrance.collector.post("/v1/track", large, key=entrance.key), 400, "event_too_large")
    assert entrance.landed() == []


def test_vector_68_a_batch_of_501_kilobytes_is_refused(entrance: Entrance) -> None:
    """No part of the batch lands."""
    batch = [BASE | {"messageId": f"m{n}", "properties": {"text": "x" * 9_900}} for n in range(51)]
    body = json.dumps({"batch": batch})
    assert len(body) > 501_000
    assert_refused(entrance.collector.post("/v1/batch", body, key=entrance.key), 400, "payload_too_large")
    assert entrance.landed() == []


def test_vector_70_malformed_json_is_refused(entrance: Entrance) -> None:
    """The error has a code and a message, for a single call and for a batch."""
    for path in ("/v1/track", "/v1/batch"):
        assert_refused(entrance.collector.post(path, '{"event": nonsense}', key=entrance.key), 400, "invalid_json")


def test_vector_71_gzip_is_accepted(entrance: Entrance) -> None:
    """Segment's library for Python sends gzip."""
    body = gzip.compress(json.dumps({"batch": [BASE], "writeKey": entrance.key}).encode())
    assert_taken(entrance.collector.post("/v1/batch", body, headers={"Content-Encoding": "gzip"}))
    assert entrance.landed("message_id") == ["m1"]


def test_vector_72_plain_text_is_accepted(entrance: Entrance) -> None:
    """Browsers send plain text."""
    body = json.dumps(BASE | {"writeKey": entrance.key})
    assert_taken(entrance.collector.post("/v1/t", body, headers={"Content-Type": "text/plain"}))
    assert entrance.landed("collection") == ["email_opened"]


def test_vector_73_good_items_land_beside_a_bad_item(entrance: Entrance) -> None:
    """The good items are stored, and the bad item is in quarantine."""
    batch = [BASE, {"type": "track", "event": "Email Opened"}, BASE | {"messageId": "m3"}]
    assert_taken(entrance.collector.post("/v1/batch", {"batch": batch}, key=entrance.key))
    assert (entrance.landed("message_id"), entrance.refused()) == (["m1", "m3"], ["no_user_anon_id"])
