"""Bodies of the tracking API: calls become events, and a batch gives its fields to its calls."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loader.events.json_text import SUSPICIOUS
from loader.events.model import Event, Reason, RefusedError
from loader.events.tracking_api import (
    Call,
    Limits,
    parse_calls,
    read_batch,
    read_call,
    read_whole_call,
    with_address,
)

LIMITS = Limits()
KINDS = ("track", "identify", "page", "screen", "group", "alias")

# Without NUL, because a text with NUL lands repaired.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
# Names that are not fields of a call.
others = st.dictionaries(texts.map(lambda name: f"x{name}"), json_values, max_size=3)
good_calls = st.builds(
    lambda user, event, extra, properties: (
        {"type": "track", "userId": user, "event": event, "properties": properties} | extra
    ),
    texts.filter(bool),
    texts,
    others,
    others,
)
bad_calls = st.sampled_from(
    [
        {"type": "track", "event": "Email Opened"},
        {"type": "track", "userId": "u1"},
        {"type": "track", "userId": "u1", "event": 7},
        {"type": "track", "userId": 7, "event": "Email Opened"},
        {"type": "track", "userId": "u1", "event": "Email Opened", "properties": []},
        {"type": "identify", "userId": "u1", "traits": "none"},
        {"type": "page", "userId": "u1", "name": ""},
        {"type": "screen", "userId": "u1", "category": 5},
        {"type": "delete", "userId": "u1"},
        {"type": "track", "userId": "u1", "event": "Email Opened", "properties": {"x": "y" * 40_000}},
        {},
        [],
        "call",
        None,
        7,
    ]
)


def body(*calls: Any, **fields: Any) -> bytes:
    """Return the body of a batch."""
    return json.dumps({"batch": list(calls)} | fields).encode()


def call(**fields: Any) -> dict[str, Any]:
    """Return a valid track call."""
    return {"type": "track", "event": "Email Opened", "userId": "u1"} | fields


def payloads(calls: list[Call]) -> list[Any]:
    """Return the decoded payloads of calls; no call may be refused."""
    events, refused = parse_calls(calls, 1)
    assert refused == []
    return [json.loads(event.payload) for event in events]


def single(text: bytes | str, kind: str = "track", limits: Limits = LIMITS) -> Event:
    """Return the one event of a request with one call."""
    ([event], []) = parse_calls([read_call(text if isinstance(text, bytes) else text.encode(), kind, limits)], 1)
    return event


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), good_calls, bad_calls), min_size=1, max_size=12))
def test_of_any_mix_exactly_the_good_calls_become_events(mix: list[tuple[bool, Any, Any]]) -> None:
    """Each valid call keeps all its fields, and each invalid call gives a refusal, whatever calls are around it."""
    items = [good if is_good else bad for is_good, good, bad in mix]
    _, calls = read_batch(body(*items), LIMITS)
    events, refused = parse_calls(calls, 1)
    landed = [json.loads(event.payload) for event in events]
    for payload in landed:
        assert payload.pop("messageId").startswith("api-")
    assert landed == [good for is_good, good, _ in mix if is_good]
    assert len(refused) == sum(not is_good for is_good, _, _ in mix)
    offsets = [event.offset for event in events] + [refusal.offset for refusal in refused]
    assert len(set(offsets)) == len(offsets)
    assert len({event.message_id for event in events}) == len(events)


@given(good_calls, st.sampled_from([(", ", ": "), (",", ":"), (",\n\t", " : ")]), st.booleans())
def test_an_item_keeps_its_bytes(item: dict[str, Any], separators: tuple[str, str], ascii_only: bool) -> None:
    """A call lands as it was sent, with its spelling."""
    written = json.dumps(item, separators=separators, ensure_ascii=ascii_only)
    _, [read] = read_batch(f'{{"batch":[{written}],"sentAt":"2026-01-01T00:00:00Z"}}'.encode(), LIMITS)
    assert read.line.endswith(written[1:].encode())


@pytest.mark.parametrize("number", ["1.10", "1e400", "123456789012345678901234567890", "-0.0", "1E+2"])
@pytest.mark.parametrize("more", ["", ',"writeKey":"k"', ',"context":{"a":1}', ',"type":"page"', ',"sentAt":null'])
def test_numbers_stay_exact(number: str, more: str) -> None:
    """No digit changes, even if the call is assembled again."""
    item = f'{{"event":"E","userId":"u","properties":{{"n":{number}}}{more}}}'
    assert f'"n":{number}}}'.encode() in single(item).payload
    batch = f'{{"batch":[{item}],"context":{{"b":2}},"sentAt":"2026-01-01T00:00:00Z"}}'
    assert f'"n":{number}}}'.encode() in read_batch(batch.encode(), LIMITS)[1][0].line


@pytest.mark.parametrize("kind", KINDS)
def test_the_path_decides_the_type_of_a_call(kind: str) -> None:
    """The call's own type does not count, whatever its spelling."""
    for own in ("", '"type":"track",', '"type":"group",', '"type":null,', '"type":7,', '"type" : "alias",'):
        event = single(f'{{{own}"userId":"u","event":"E","name":"n"}}', kind)
        assert json.loads(event.payload)["type"] == kind
        assert (event.collection == "e") == (kind == "track")


def test_a_call_without_an_id_gets_a_new_id_each_time() -> None:
    """A null or empty id counts as missing. The new id is within Segment's 100 characters."""
    sent = [f'{{"userId":"u","event":"E"{given}}}' for given in ("", ',"messageId":null', ',"messageId":""')]
    ids = [single(text).message_id for text in sent for _ in range(2)]
    calls = [call(), call(messageId=None), call(messageId="")]
    for _ in range(2):
        ids += [event.message_id for event in parse_calls(read_batch(body(*calls), LIMITS)[1], 1)[0]]
    assert len(set(ids)) == len(ids)
    assert all(0 < len(each) <= 100 for each in ids)


def test_a_call_keeps_its_own_id() -> None:
    """A call keeps its id in a request of its own and in a batch."""
    assert single('{"userId":"u","event":"E","messageId":"m1"}').message_id == "m1"
    assert [p["messageId"] for p in payloads(read_batch(body(call(messageId="m1")), LIMITS)[1])] == ["m1"]


@pytest.mark.parametrize(
    ("shared", "own", "merged"),
    [
        ({"sentAt": "s"}, {}, {"sentAt": "s"}),
        ({"sentAt": "s"}, {"sentAt": "own"}, {"sentAt": "own"}),
        ({"sentAt": "s"}, {"sentAt": None}, {"sentAt": "s"}),
        ({"sentAt": None}, {"sentAt": "own"}, {"sentAt": "own"}),
        ({"context": {"a": 1}}, {}, {"context": {"a": 1}}),
        ({"context": {"a": 1, "b": 1}}, {"context": {"b": 2, "c": 2}}, {"context": {"a": 1, "b": 2, "c": 2}}),
        ({"context": {"a": 1}}, {"context": None}, {"context": {"a": 1}}),
        ({"context": None}, {"context": {"b": 2}}, {"context": {"b": 2}}),
        ({"context": "x"}, {"context": {"b": 2}}, {"context": {"b": 2}}),
        ({"context": {"a": 1}}, {"context": "x"}, {"context": "x"}),
        (
            {"integrations": {"All": False}},
            {"integrations": {"S3": True}},
            {"integrations": {"All": False, "S3": True}},
        ),
        ({"context": {"a": 1}, "sentAt": "s"}, {"context": {}}, {"context": {"a": 1}, "sentAt": "s"}),
    ],
)
def test_a_batch_adds_its_shared_fields_to_each_call(
    shared: dict[str, Any], own: dict[str, Any], merged: dict[str, Any]
) -> None:
    """A call gets the time of sending, context and integrations. Its own values take precedence, except null."""
    first, second = payloads(read_batch(body(call(**own), call(), **shared), LIMITS)[1])
    assert {name: first[name] for name in merged} == merged
    assert all(second.get(name) == value for name, value in shared.items() if value is not None)


def test_write_keys_are_taken_out_of_calls() -> None:
    """A key may be in the batch or in an item, null or repeated, in any spelling."""
    key, calls = read_batch(body(call(writeKey="item"), call(), call(writeKey=None), writeKey="batch"), LIMITS)
    assert key == "batch"
    assert [each.write_key for each in calls] == ["item", "", ""]
    doubled = read_call(b'{"writeKey":"one","userId":"u","event":"E","writeKey":"two"}', "track", LIMITS)
    assert doubled.write_key == "two"
    calls.append(doubled)
    assert not any(b"writeKey" in each.line for each in calls)
    escaped = read_call(b'{"write\\u004bey":"one","userId":"u","event":"E"}', "track", LIMITS)
    assert escaped.write_key == "one"
    assert b"one" not in escaped.line


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b" \n\xef\xbb\xbf ", b"\n"])
def test_a_byte_order_mark_and_white_space_before_the_body_are_skipped(mark: bytes) -> None:
    """A byte order mark and white space are skipped."""
    assert single(mark + b'{"userId":"u","event":"E"}\n').collection == "e"
    assert len(payloads(read_batch(mark + body(call()), LIMITS)[1])) == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", Reason.INVALID_JSON),
        (b"  \n", Reason.INVALID_JSON),
        (b"call", Reason.INVALID_JSON),
        (b"[]", Reason.NOT_OBJECT),
        (b"7", Reason.NOT_OBJECT),
        (b'"call"', Reason.NOT_OBJECT),
        (b"\xff{}", Reason.INVALID_UTF8),
    ],
)
def test_a_body_that_is_no_object_is_refused(text: bytes, code: Reason) -> None:
    """The reason is the same as for a line of a file."""
    for read in (lambda: read_call(text, "track", LIMITS), lambda: read_batch(text, LIMITS)):
        with pytest.raises(RefusedError) as refused:
            read()
        assert refused.value.reason == code
        assert refused.value.detail


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{}", Reason.BAD_REQUEST),
        (b'{"batch":null}', Reason.BAD_REQUEST),
        (b'{"batch":{}}', Reason.BAD_REQUEST),
        (b'{"batch":[],"writeKey":7}', Reason.BAD_REQUEST),
        (b'{"batch":[]}', Reason.EMPTY_BATCH),
        (b'{"batch":[{}', Reason.TRUNCATED_LINE),
        (b'{"batch":[{}]', Reason.TRUNCATED_LINE),
        (b'{"batch":[,]}', Reason.INVALID_JSON),
        (b'{"batch":' + b"[" * 100_000, Reason.TOO_DEEP),
    ],
)
def test_a_body_without_calls_is_refused(text: bytes, code: Reason) -> None:
    """The batch is missing, empty or cut short."""
    with pytest.raises(RefusedError) as refused:
        read_batch(text, LIMITS)
    assert refused.value.reason == code


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"userId":"u","event":"E"', Reason.TRUNCATED_LINE),
        (b'{"userId":"u",,}', Reason.INVALID_JSON),
        (b'{"userId":"u\xff","event":"E"}', Reason.INVALID_UTF8),
        (b'{"event":"E"}', Reason.NO_USER_ANON_ID),
        (b'{"userId":null,"anonymousId":"","event":"E"}', Reason.NO_USER_ANON_ID),
        (b'{"userId":5,"event":"E"}', Reason.ID_NOT_STRING),
        (b'{"userId":"u"}', Reason.EVENT_NOT_DEFINED),
        (b'{"userId":"u","event":["E"]}', Reason.EVENT_NOT_STRING),
        (b'{"userId":"u","event":"E","properties":"p"}', Reason.PROPERTIES_NOT_OBJECT),
        (b'{"userId":"u","event":"E","traits":1}', Reason.TRAITS_NOT_OBJECT),
    ],
)
def test_an_invalid_call_is_refused_with_its_reason(text: bytes, reason: Reason) -> None:
    """The reason is Segment's code, if Segment has a code."""
    events, [refusal] = parse_calls([read_call(text, "track", LIMITS)], 1)
    assert events == []
    assert refusal.reason == reason


def test_the_clients_time_of_receipt_is_ignored() -> None:
    """The client's time of receipt does not count, whatever its spelling."""
    for name in ("receivedAt", "\\u0072eceivedAt"):
        assert single(f'{{"userId":"u","event":"E","{name}":"2001-01-01T00:00:00Z"}}').received_at is None


@pytest.mark.parametrize("written", ["type", "t\\u0079pe"])
def test_the_path_overrides_a_type_with_any_spelling_of_its_name(written: str) -> None:
    """The call's own type does not count, whatever the spelling of its name."""
    event = single(f'{{"userId":"u","event":"E","{written}":"identify"}}')
    assert (event.collection, json.loads(event.payload)["type"]) == ("e", "track")
    assert single(f'{{"userId":"u","event":"E","{written}":"track"}}', "identify").collection is None


@pytest.mark.parametrize(
    "text",
    [
        b'{ "userId":"u", "event": "E", "type":"track","messageId":"m","receivedAt":"2001-01-01T00:00:00Z"}',
        b'{"userId":"u","event":"E","messageId":"m"}',
        b'{\n  "userId": "u",\n  "event": "E",\n  "messageId": "m"\n}\n',
        b'{"userId":"u","event":"E","messageId":"m","context":{"a":{"direct":true}},"properties":{"writeKey":"k"}}',
    ],
)
def test_a_complete_call_lands_byte_for_byte(text: bytes) -> None:
    """A complete call lands byte for byte."""
    event = read_whole_call(text, "track", LIMITS)
    assert event
    assert (event.payload, event.message_id, event.received_at) == (text, "m", None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"userId":"u","event":"E","type":"track"}', "track"),
        ('{"userId":"u","event":"E","type":"track","properties":{"messageId":"m"}}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":null}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m"}', "identify"),
        ('{"userId":"u","event":"E","type":"page","messageId":"m"}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m","writeKey":"k"}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m"}\n{}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m","write\\u004bey":"k"}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m","writeKey":null}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m","context":{"direct":true}}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m","context":{"dir\\u0065ct":true}}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m","context":{"a":1},"context":7}', "track"),
        ('{"userId":"u","event":"E","type":null,"messageId":"m"}', "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m","x":"\\u0000"}', "track"),
        ('{"userId":7,"event":"E","type":"track","messageId":"m"}', "track"),
        ("[]", "track"),
        ("", "track"),
        ('{"userId":"u","event":"E","type":"track","messageId":"m","x":"%s"}' % ("y" * 40_000), "track"),
    ],
)
def test_an_incomplete_or_invalid_call_is_left_to_the_full_parser(text: str, kind: str) -> None:
    """The parser of incomplete calls adds the id and the type, and gives an invalid call its place in quarantine."""
    assert read_whole_call(text.encode(), kind, LIMITS) is None


@given(good_calls, st.booleans())
def test_both_parsers_of_a_call_give_the_same_event(fields: dict[str, Any], has_type: bool) -> None:
    """A row does not depend on the parser of its call."""
    fields = {name: value for name, value in fields.items() if has_type or name != "type"} | {"messageId": "m1"}
    text = json.dumps(fields).encode()
    assume(not SUSPICIOUS.search(text))
    event = read_whole_call(text, "track", LIMITS)
    other = single(text)
    assert event
    assert (event.message_id, event.collection) == (other.message_id, other.collection)
    assert json.loads(event.payload) | {"type": "track"} == json.loads(other.payload)


def test_a_call_may_have_exactly_the_limit_of_bytes() -> None:
    """The call's own bytes count, without additions of the batch or the server.

    Segment's libraries send up to the limit.
    """
    fits = json.dumps(call(properties={"x": "y" * 32_000})).encode()
    fits = fits.replace(b"y", b"y" * (32_768 - len(fits) + 1), 1)
    assert len(fits) == 32_768
    assert single(fits)
    too_large = fits.replace(b"y", b"yy", 1)
    events, [refusal] = parse_calls([read_call(too_large, "track", LIMITS)], 1)
    assert (events, refusal.reason) == ([], Reason.EVENT_TOO_LARGE)
    _, calls = read_batch(b'{"batch":[%b,%b],"context":{"a":1}}' % (fits, too_large), LIMITS)
    [event], [refusal] = parse_calls(calls, 1)
    assert refusal.reason == Reason.EVENT_TOO_LARGE
    assert len(event.payload) > 32_768


def test_calls_of_a_batch_beyond_the_limit_are_refused() -> None:
    """The calls up to the limit land."""
    _, calls = read_batch(body(*[call(messageId=f"m{n}") for n in range(5)]), Limits(batch_items=3))
    events, refused = parse_calls(calls, 1)
    assert [event.message_id for event in events] == ["m0", "m1", "m2"]
    assert [(r.reason, json.loads(r.payload)["messageId"]) for r in refused] == [
        (Reason.TOO_MANY_ITEMS, "m3"),
        (Reason.TOO_MANY_ITEMS, "m4"),
    ]


@pytest.mark.parametrize(
    ("fields", "client_side", "address"),
    [
        ({}, True, "192.0.2.1"),
        ({"context": {}}, True, "192.0.2.1"),
        ({"context": {"ip": "own"}}, True, "own"),
        ({}, False, None),
        ({"context": {"direct": True}}, False, "192.0.2.1"),
        ({"context": {"direct": False}}, False, None),
        ({"context": {"direct": "true"}}, False, None),
        ({"properties": {"direct": True}}, False, None),
        ({"context": {"direct": True, "ip": "own"}}, False, "own"),
        ({"context": {"direct": True, "ip": None}}, False, None),
    ],
)
def test_the_address_is_added_where_segment_adds_it(
    fields: dict[str, Any], client_side: bool, address: str | None
) -> None:
    """Browsers and calls with `direct` get the address. An existing address stays."""
    read = Call(json.dumps(call(**fields)).encode())
    line = msgspec.json.decode(with_address(read, "192.0.2.1", client_side=client_side).line)
    assert line.get("context", {}).get("ip") == address


def test_no_address_is_added_to_an_unreadable_call() -> None:
    """Such a body goes to quarantine unchanged."""
    for text in (b'{"direct"', b'{"context":"direct"}', b'{"context":{"direct":tru}}'):
        assert with_address(Call(text), "192.0.2.1", client_side=True).line == text
