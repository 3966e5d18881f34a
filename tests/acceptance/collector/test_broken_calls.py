"""Bodies with an unreadable call: the other calls land, and that call is refused for its own reason."""

import json
from pathlib import Path

import pytest
from segment.analytics.client import Client

from tests.acceptance.collector.test_segment_webhook import SECRET, signature
from tests.acceptance.collector.test_segment_webhook import event as forwarded
from tests.support.collector_thread import Entrance, assert_refused, assert_taken
from tests.support.tcp_proxy import proxied

# The JSON that Python and JavaScript write for a surrogate pair that was cut in the middle.
CUT = r"cut \ud83d"
REPAIRED = "cut \ufffd"
DEEP = "[" * 1_000 + "]" * 1_000

TRACKING_BATCHES = ("/v1/batch", "/v1/import", "/v1/b")
LISTS = ("/webhooks/segment", "/webhooks/iterable")


def item(number: int, path: str, value: str = '"x"') -> str:
    """Return a call or event for a route, with a property of exactly the given text."""
    if path == "/webhooks/iterable":
        fields = f'"campaignId": {number}, "createdAt": "2026-03-04 15:00:02 +00:00", "subject": {value}'
        return f'{{"eventName": "emailOpen", "email": "u@example.com", "dataFields": {{{fields}}}}}'
    properties = f'{{"campaignId": {number}, "subject": {value}}}'
    return (
        f'{{"type": "track", "event": "Email Opened", "userId": "u", "messageId": "m{number}",'
        f' "properties": {properties}}}'
    )


def body_of(path: str, items: list[str]) -> str:
    """Return a body with these calls, for a route that accepts several calls."""
    listed = "[" + ", ".join(items) + "]"
    return f'{{"batch": {listed}, "sentAt": "2026-03-04T15:00:03Z"}}' if path in TRACKING_BATCHES else listed


def subjects(entrance: Entrance) -> dict[int, str]:
    """Return the property of each landed event, by its number."""
    return {int(payload["properties"]["campaignId"]): payload["properties"]["subject"] for payload in entrance.landed()}


@pytest.mark.parametrize("path", [*TRACKING_BATCHES, *LISTS])
def test_a1_all_calls_of_a_body_land_despite_a_cut_character(entrance: Entrance, path: str) -> None:
    """All calls land, and the cut character becomes U+FFFD. The original call is kept, not the body."""
    items = [item(number, path, f'"{CUT}"' if number == 7 else '"x"') for number in range(20)]
    assert_taken(entrance.collector.post(path, body_of(path, items), key=entrance.key))
    assert subjects(entrance) == {number: REPAIRED if number == 7 else "x" for number in range(20)}
    assert entrance.refused() == ["lone_surrogate"]
    assert entrance.refused("resolution") == ["repaired"]
    [kept] = entrance.refused("payload")
    assert CUT.encode() in kept
    assert b'"campaignId": 7' in kept
    assert b'"campaignId": 8' not in kept


@pytest.mark.parametrize("path", [*TRACKING_BATCHES, *LISTS])
@pytest.mark.parametrize(
    ("broken", "reason"),
    [(DEEP, "too_deep"), ("tru", "invalid_json"), ('{"a" 1}', "invalid_json"), ("1.", "invalid_json")],
)
def test_a1_a_call_that_cannot_be_read_is_refused_alone(
    entrance: Entrance, path: str, broken: str, reason: str
) -> None:
    """The refusal has the call's own reason and bytes. The answer is success."""
    items = [item(number, path, broken if number == 3 else '"x"') for number in range(5)]
    assert_taken(entrance.collector.post(path, body_of(path, items), key=entrance.key))
    assert subjects(entrance) == dict.fromkeys((0, 1, 2, 4), "x")
    assert entrance.refused() == [reason]
    [kept] = entrance.refused("payload")
    assert kept.count(b"campaignId") == 1


@pytest.mark.parametrize("path", LISTS)
def test_a1_a_webhook_of_one_event_with_a_cut_character_lands(entrance: Entrance, path: str) -> None:
    """This holds for an array of one event and for the event alone."""
    for number, wrapped in enumerate(("[%s]", "%s", "\ufeff[%s]", "\ufeff%s")):
        text = wrapped % item(number, path, f'"{CUT}"')
        assert_taken(entrance.collector.post(path, text.encode(), key=entrance.key))
    assert subjects(entrance) == dict.fromkeys(range(4), REPAIRED)


def test_a1_the_shared_fields_of_a_batch_reach_its_calls(entrance: Entrance) -> None:
    """This also holds if a character of a shared field or of a call is cut."""
    context = f'{{"traits": {{"city": "{CUT}"}}, "a": 1}}'
    items = [item(1, "/v1/batch"), item(2, "/v1/batch", f'"{CUT}"').replace('"type"', '"context": {"b": 2}, "type"')]
    text = f'{{"context": {context}, "batch": [{", ".join(items)}], "sentAt": "2026-03-04T15:00:03Z"}}'
    headers = {"Origin": "https://shop.example"}
    assert_taken(entrance.collector.post("/v1/batch", text, key=entrance.key, headers=headers))
    shared = {"traits": {"city": REPAIRED}, "a": 1, "ip": "127.0.0.1"}
    assert entrance.landed("payload -> 'context'") == [shared, shared | {"b": 2}]
    assert entrance.landed("payload ->> 'sentAt'") == ["2026-03-04T15:00:03Z"] * 2


def test_a1_a_batch_with_inseparable_calls_is_refused_whole(entrance: Entrance) -> None:
    """The reason is that of the batch, never that of a repaired character."""
    for text, reason in (
        (f'{{"batch": [{item(1, "", json.dumps("x"))}, {{"x": "{CUT}"}}', "truncated_line"),
        (f'{{"batch": [{{"x": "{CUT}"}}, {{"a": [1}}, {{}}]}}', "invalid_json"),
        (f'{{"x": "{CUT}"}}', "bad_request"),
        (f'{{"x": "{CUT}", "batch": []}}', "bad_request"),
        (f'{{"x": "{CUT}", "batch": {{}}}}', "bad_request"),
    ):
        assert_refused(entrance.collector.post("/v1/batch", text, key=entrance.key), 400, reason)
    assert entrance.refused() == ["truncated_line", "invalid_json", "bad_request", "bad_request", "bad_request"]
    assert entrance.landed() == []


@pytest.mark.parametrize("compressed", [False, True])
def test_a1_segments_own_library_loses_nothing_to_a_cut_character(entrance: Entrance, compressed: bool) -> None:
    """One of 20 events has a cut character. The library gets no error, and all events land."""
    errors: list[Exception] = []
    client = Client(
        entrance.key,
        host=f"http://127.0.0.1:{entrance.collector.port}",
        gzip=compressed,
        upload_size=20,
        on_error=lambda error, _: errors.append(error),
    )
    for number in range(20):
        client.track("u1", "Email Opened", {"campaignId": number, "subject": "cut \ud83d" if number == 7 else "x"})
    client.shutdown()
    assert errors == []
    assert subjects(entrance) == {number: REPAIRED if number == 7 else "x" for number in range(20)}
    assert entrance.refused("resolution") == ["repaired"]


def test_a1_a_signed_webhook_with_a_cut_character_is_accepted(entrance: Entrance) -> None:
    """Segment signs the first event of a batch, whatever the other events contain."""
    first = forwarded()
    broken = item(2, "/webhooks/segment", f'"{CUT}"')
    secret = type(entrance.settings.segment_secret)(SECRET)
    with entrance.with_settings(segment_secret=secret) as collector:
        for text in (f"[{json.dumps(first)}, {broken}]", f"[{json.dumps(first)}, {item(3, '', DEEP)}]"):
            headers = {"Authorization": entrance.key} | signature(first)
            assert_taken(collector.post("/webhooks/segment", text, headers=headers))
    assert entrance.landed("message_id") == ["m1", "m2", "m1"]
    assert entrance.refused() == ["lone_surrogate", "too_deep"]


@pytest.mark.parametrize(
    "kind", ["track", "identify", "page", "screen", "group", "alias", "t", "i", "p", "s", "g", "a"]
)
@pytest.mark.parametrize(
    "more", ["", '"type": "track", ', '"type": "alias", ', r'"n": "\u00e9", ', '"writeKey": "k", ']
)
@pytest.mark.parametrize("flaw", [CUT, r"nul \u0000", r"\ude00 cut", r"\ud83d\ud83d"])
def test_a2_a_single_call_with_a_cut_character_lands(entrance: Entrance, kind: str, more: str, flaw: str) -> None:
    """This holds whatever else the call contains. A repaired character is never the reason of a refusal."""
    text = f'{{{more}"userId": "u", "event": "E", "name": "n", "properties": {{"x": "{flaw}"}}}}'
    assert_taken(entrance.collector.post(f"/v1/{kind}", text, key=entrance.key))
    [payload] = entrance.landed()
    assert "\ufffd" in payload["properties"]["x"]
    assert payload["type"].startswith(kind)
    assert "writeKey" not in payload
    assert entrance.refused("resolution") == ["repaired"]


@pytest.mark.parametrize("path", ["/v1/track", "/v1/identify", "/webhooks/segment", "/webhooks/iterable"])
def test_a2_a_repaired_character_is_never_the_reason_of_a_refusal(entrance: Entrance, path: str) -> None:
    """The call cannot land for another reason."""
    fields = '"type": "track", "event": "E", "eventName": "emailOpen"'
    for broken, reason in (
        (f'{{{fields}, "x": "{CUT}"}}', "no_user_anon_id"),
        (f'{{{fields}, "userId": "u", "x": "{CUT}", "y": tru}}', "invalid_json"),
        (f'{{{fields}, "userId": "u", "x": "{CUT}", "y": ', "truncated_line"),
        (f'{{{fields}, "userId": "u", "x": "{CUT}", "y": {DEEP}}}', "too_deep"),
    ):
        assert_refused(entrance.collector.post(path, broken, key=entrance.key), 400, reason)
        assert entrance.refused()[-1:] == [reason]
    assert entrance.refused("resolution") == [None] * 4
    assert entrance.landed() == []


def bodies_with_keys(key: str) -> list[tuple[str, str]]:
    """Return paths and bodies with a write key in them: landing, repaired and refused bodies."""
    written = f'"writeKey": "{key}"'
    single = f'"userId": "u", "event": "E", {written}'
    calls = [
        f'{{{written}, "type": "track", "userId": "u", "event": "E", {more}}}'
        for more in ('"a": 1', f'"a": "{CUT}"', f'"a": {DEEP}', '"a": tru', '"userId": 7')
    ]
    return [
        *((f"/v1/{name}", f'{{{single}, "a": "{CUT}", "type": "alias"}}') for name in ("track", "t", "p", "a")),
        ("/v1/track", f'{{{single}, "a": tru}}'),
        ("/v1/track", f'{{{single}, "a": '),
        ("/v1/track", f"[{{{single}}}]"),
        ("/v1/i", f'{{{single}, "a": {DEEP}, "type": "track"}}'),
        ("/v1/track", f'{{{single}, "a": "{"y" * 40_000}"}}'),
        *((path, f'{{"batch": [{", ".join(calls)}], {written}}}') for path in TRACKING_BATCHES),
        ("/v1/b", f'{{"batch": [{calls[0]}, {{"a": [1}}], {written}}}'),
        ("/v1/b", f'{{"batch": {{}}, {written}}}'),
        ("/v1/b", f'{{"batch": [[{calls[0]}], {json.dumps(calls[0])}], {written}}}'),
        ("/v1/b", f"writeKey={key}&batch=1"),
        ("/webhooks/segment", f"[{', '.join(calls)}]"),
        ("/webhooks/segment", calls[1]),
    ]


def kept_bytes(entrance: Entrance) -> bytes:
    """Return everything that the database stores of the received requests."""
    rows = entrance.connection.execute(
        "select convert_to(payload::text, 'utf8') from raw.events"
        " union all select payload || convert_to(detail, 'utf8') from raw.quarantine"
    )
    return b"\n".join(bytes(row[0]) for row in rows)


@pytest.mark.parametrize("shown", [True, False], ids=["in a header too", "in the body only"])
def test_c3_no_write_key_is_stored(entrance: Entrance, shown: bool) -> None:
    """Only the digest of a key is stored, whatever the call's way."""
    for path, text in bodies_with_keys(entrance.key):
        if not shown and path.startswith("/webhooks"):
            continue
        entrance.empty()
        reply = entrance.collector.post(path, text, key=entrance.key if shown else None)
        assert reply.status in (200, 400), (path, text[:80], reply)
        kept = kept_bytes(entrance)
        assert kept, (path, text[:80])
        assert entrance.key.encode() not in kept, (path, text[:80])


def test_c3_no_write_key_is_in_the_spool(entrance: Entrance, tmp_path: Path) -> None:
    """The spooled bytes contain no key either."""
    spool = tmp_path / "spool"
    with (
        proxied(entrance.settings.database_url) as proxy,
        entrance.with_settings(database_url=proxy.url, spool=spool) as collector,
    ):
        assert_taken(collector.post("/v1/track", item(1, "/v1/track"), key=entrance.key))
        proxy.stop()
        bodies = bodies_with_keys(entrance.key)
        for path, text in bodies:
            assert collector.post(path, text, key=entrance.key).status in (200, 400)
        kept = b"".join(segment.read_bytes() for segment in spool.rglob("*") if segment.is_file())
    assert kept.count(b'"userId"') >= len(bodies)
    assert entrance.key.encode() not in kept
