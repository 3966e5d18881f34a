"""The tracking API as Segment's libraries use it: the answers, the landed events and their sources."""

import gzip
import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from segment.analytics.client import Client
from segment.analytics.request import APIError

from loader.postgres.database import open_database
from loader.raw.sources import add_key, list_keys, revoke_key
from tests.support.collector_thread import Collecting, Entrance, assert_refused, assert_taken
from tests.support.factories import call
from tests.support.waiting import wait_until

KINDS = {"t": "track", "i": "identify", "p": "page", "s": "screen", "g": "group", "a": "alias"}


@pytest.fixture(scope="module")
def small(module_entrance: Entrance) -> Iterator[Collecting]:
    """A collector with small limits."""
    with module_entrance.with_settings(event_bytes=200, batch_bytes=1000, batch_items=3) as collector:
        yield collector


@pytest.fixture(scope="module")
def segmentlike(module_entrance: Entrance) -> Iterator[Collecting]:
    """A collector that answers as Segment does."""
    with module_entrance.with_settings(segment_answers=True, event_bytes=200) as collector:
        yield collector


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("name", [*KINDS, *KINDS.values()])
def test_each_kind_of_call_has_a_route(entrance: Entrance, name: str, slash: str) -> None:
    """The routes have full names and first letters. Only track calls have a table."""
    kind = KINDS.get(name, name)
    sent = {"userId": "u1", "event": "Email Opened", "previousId": "u0", "groupId": "g1"}
    assert_taken(entrance.collector.post(f"/v1/{name}{slash}", sent, key=entrance.key))
    [payload] = entrance.landed()
    assert payload.pop("messageId") == entrance.landed("message_id")[0]
    assert payload == sent | {"type": kind}
    assert entrance.landed("collection") == ["email_opened" if kind == "track" else None]


@pytest.mark.parametrize("path", ["/v1/batch", "/v1/batch/", "/v1/import", "/v1/import/", "/v1/b", "/v1/b/"])
def test_a_batch_lands_whole(entrance: Entrance, path: str) -> None:
    """The batch has several routes. Each call has the batch's time of sending (vector 63)."""
    calls = [call(messageId=f"m{number}") for number in range(3)]
    sent_at = "2026-01-01T00:00:00.000Z"
    assert_taken(entrance.collector.post(path, {"batch": calls, "sentAt": sent_at}, key=entrance.key))
    assert entrance.landed() == [each | {"sentAt": sent_at} for each in calls]
    assert entrance.landed("source") == ["iterable"] * 3


def shown(key: str, form: str) -> dict[str, Any]:
    """Return the request's options for a key in some form."""
    encoded = {"colon": f"{key}:", "bare": key, "password": f"{key}:x"}
    if form in encoded:
        return {"headers": {"Authorization": "Basic " + b64encode(encoded[form].encode()).decode()}}
    return {"headers": {"Authorization": "Bearer some.token.signed"}} if form == "bearer" else {}


@pytest.mark.parametrize("form", ["colon", "bare", "password", "body", "bearer"])
def test_a_key_may_be_shown_in_several_forms(entrance: Entrance, form: str) -> None:
    """The key is in Basic authentication or in the body, there also beside a token.

    The key is never stored (vector 64).
    """
    inside = {"writeKey": entrance.key} if form in {"body", "bearer"} else {}
    options = shown(entrance.key, form)
    assert_taken(entrance.collector.post("/v1/track", call() | inside, **options))
    assert_taken(entrance.collector.post("/v1/batch", {"batch": [call(messageId="m2")]} | inside, **options))
    assert_taken(entrance.collector.post("/v1/batch", {"batch": [call(messageId="m3") | inside]}, **options))
    assert entrance.landed() == [call(), call(messageId="m2"), call(messageId="m3")]


def test_items_go_to_the_sources_of_their_own_keys(entrance: Entrance) -> None:
    """Items with an unknown key make the answer an error. The other items land."""
    items = [call(messageId=name, writeKey=key) for name, key in (("a", entrance.key), ("b", entrance.other_key))]
    assert_taken(entrance.collector.post("/v1/batch", {"batch": items}))
    reply = entrance.collector.post("/v1/batch", {"batch": [call(messageId="c", writeKey="no key"), *items]})
    assert_refused(reply, 401, "invalid_write_key")
    assert sorted(entrance.landed("source || ' ' || message_id")) == [
        "iterable a",
        "iterable a",
        "second b",
        "second b",
    ]


def test_the_key_of_a_request_comes_before_keys_in_its_body(entrance: Entrance) -> None:
    """Libraries send the same key in both places, and neither is stored."""
    body = {"batch": [call(writeKey=entrance.other_key)], "writeKey": entrance.other_key}
    assert_taken(entrance.collector.post("/v1/batch", body, key=entrance.key))
    assert entrance.landed("source") == ["iterable"]
    assert "writeKey" not in entrance.landed()[0]


@pytest.mark.parametrize("path", ["/v1/track", "/v1/batch"])
@pytest.mark.parametrize("key", [None, "", "unknown"])
def test_an_unknown_key_is_refused(entrance: Entrance, path: str, key: str | None) -> None:
    """The status is 401, and no part of the request is kept."""
    body = call() if path == "/v1/track" else {"batch": [call()]}
    assert_refused(entrance.collector.post(path, body, key=key), 401, "invalid_write_key")
    assert entrance.landed() == entrance.refused() == []


def test_a_new_key_works_at_once_and_a_revoked_key_is_refused(entrance: Entrance) -> None:
    """No restart is needed, and the use of the key is recorded."""
    with open_database(entrance.settings) as database:
        with database.begin() as connection:
            key = add_key(connection, "Iterable")
        assert_taken(entrance.collector.post("/v1/track", call(), key=key))

        def used() -> bool:
            with database.begin() as connection:
                return list_keys(connection)[-1].last_used_at is not None

        wait_until(used, "the key's last use")
        with database.begin() as connection:
            revoke_key(connection, list_keys(connection)[-1].id)
    wait_until(
        lambda: entrance.collector.post("/v1/track", call(), key=key).status == 401, "the revoked key to be refused"
    )


def test_numbers_land_as_they_were_written(entrance: Entrance) -> None:
    """Numbers may have any length, in every form of a body."""
    text = '{"userId":"u","event":"E","properties":{"n":12345678901234567890123456789.10}%s}'
    more = f',"writeKey":"{entrance.key}","type":"track","context":{{"a":1.50}}'
    assert_taken(entrance.collector.post("/v1/track", text % "", key=entrance.key))
    assert_taken(entrance.collector.post("/v1/track", text % more))
    assert_taken(entrance.collector.post("/v1/batch", f'{{"batch":[{text % more}],"context":{{"b":2}}}}'))
    assert entrance.landed("payload #>> '{properties,n}'") == ["12345678901234567890123456789.10"] * 3
    assert entrance.landed("payload #>> '{context,a}'") == [None, "1.50", "1.50"]


def test_two_calls_without_an_id_are_two_rows(entrance: Entrance) -> None:
    """The server makes ids that are no longer than Segment's (vector 17)."""
    for _ in range(2):
        assert_taken(entrance.collector.post("/v1/track", {"userId": "u", "event": "E"}, key=entrance.key))
    first, second = entrance.landed("message_id")
    assert first != second
    assert max(len(first), len(second)) <= 100


def test_a_compressed_body_is_accepted(entrance: Entrance) -> None:
    """The body may have several gzip members (vector 71)."""
    headers = {"Content-Encoding": "gzip"}
    data = json.dumps(call()).encode()
    for body in (gzip.compress(data), gzip.compress(data[:9]) + gzip.compress(data[9:])):
        assert_taken(entrance.collector.post("/v1/track", body, key=entrance.key, headers=headers))
    assert entrance.landed() == [call(), call()]


def test_plain_text_is_read_as_json(entrance: Entrance) -> None:
    """Browsers send plain text, and a byte order mark is skipped (vector 72)."""
    headers = {"Content-Type": "text/plain"}
    for text in (json.dumps(call()), "\ufeff" + json.dumps(call(), indent=1)):
        assert_taken(entrance.collector.post("/v1/t", text.encode(), key=entrance.key, headers=headers))
    assert entrance.landed() == [call(), call()]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"userId": None}, "no_user_anon_id"),
        ({"userId": ""}, "no_user_anon_id"),
        ({"userId": 7}, "id_not_string"),
        ({"event": None}, "event_not_defined"),
        ({"event": 7}, "event_not_string"),
        ({"properties": []}, "properties_not_object"),
        ({"traits": "t"}, "traits_not_object"),
    ],
)
def test_an_invalid_call_gets_an_error_and_is_kept(
    entrance: Entrance, segmentlike: Collecting, fields: dict[str, Any], code: str
) -> None:
    """The code is Segment's. With Segment's answers the status is 200, and the call is kept too (vector 66)."""
    assert_refused(entrance.collector.post("/v1/track", call(**fields), key=entrance.key), 400, code)
    assert_taken(segmentlike.post("/v1/track", call(**fields), key=entrance.key))
    assert entrance.refused() == [code, code]
    assert entrance.refused("entrance") == ["tracking", "tracking"]
    assert all(json.loads(payload) == call(**fields) for payload in entrance.refused("payload"))
    assert entrance.landed() == []


@pytest.mark.parametrize("name", ["name", "category"])
def test_a_page_with_an_empty_name_is_refused(entrance: Entrance, name: str) -> None:
    """Segment refuses such a page too."""
    assert_refused(
        entrance.collector.post("/v1/page", {"userId": "u", name: ""}, key=entrance.key), 400, f"{name}_not_string"
    )


@pytest.mark.parametrize("path", ["/v1/track", "/v1/batch"])
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "truncated_line"),
        ('{"batch":[{}', "truncated_line"),
        ("{,}", "invalid_json"),
        ("batch", "invalid_json"),
        ("[]", "not_object"),
        (b"\xff", "invalid_utf8"),
    ],
)
def test_an_unreadable_body_gets_an_error_and_is_kept(
    entrance: Entrance, segmentlike: Collecting, path: str, text: str | bytes, code: str
) -> None:
    """The status is 400, with Segment's answers too (vector 70)."""
    assert_refused(entrance.collector.post(path, text, key=entrance.key), 400, code)
    assert_refused(segmentlike.post(path, text, key=entrance.key), 400, code)
    assert entrance.refused() == [code, code]
    assert entrance.landed() == []


def test_a_body_that_cannot_be_read_is_kept_without_its_key(entrance: Entrance) -> None:
    """The key decides the source, wherever it is in the body. A body without a key is not kept."""
    text = f'{{"writeKey":"{entrance.key}","batch":[{{'
    assert_refused(entrance.collector.post("/v1/batch", text), 400, "truncated_line")
    assert_refused(entrance.collector.post("/v1/batch", text, key=entrance.key), 400, "truncated_line")
    assert_refused(entrance.collector.post("/v1/batch", '{"batch":[{'), 400, "truncated_line")
    assert entrance.refused("payload") == [b'{"writeKey":"","batch":[{'] * 2


@pytest.mark.parametrize("body", ["", " ", '{"batch":[]}', '{"batch":{}}', "{}"])
def test_a_batch_without_calls_gets_an_error(entrance: Entrance, body: str) -> None:
    """Such a batch has no events."""
    reply = entrance.collector.post("/v1/batch", body, key=entrance.key)
    assert_refused(
        reply, 400, {"": "invalid_json", " ": "invalid_json", '{"batch":[]}': "empty_batch"}.get(body, "bad_request")
    )


def test_the_good_calls_of_a_batch_land_and_bad_calls_are_kept(entrance: Entrance) -> None:
    """Each bad call has its reason, and the answer is success (vector 73)."""
    items = [call(), {"userId": "u"}, [], call(messageId="m2"), call(userId=5), "call", None]
    assert_taken(entrance.collector.post("/v1/batch", {"batch": items}, key=entrance.key))
    assert entrance.landed("message_id") == ["m1", "m2"]
    assert sorted(entrance.refused()) == ["bad_request", "id_not_string", "not_object", "not_object", "not_object"]


def test_a_call_over_the_limit_is_refused_and_kept(
    entrance: Entrance, small: Collecting, segmentlike: Collecting
) -> None:
    """This holds for a request of its own and for a batch. A call at the limit is accepted (vector 67)."""
    large = call(properties={"x": "y" * 200})
    fits = json.dumps(call(properties={"x": ""}))
    fits = fits.replace('""', '"{}"'.format("y" * (200 - len(fits))))
    assert_taken(small.post("/v1/track", fits, key=entrance.key))
    assert_refused(small.post("/v1/track", large, key=entrance.key), 400, "event_too_large")
    assert_refused(segmentlike.post("/v1/track", large, key=entrance.key), 400, "event_too_large")
    assert_taken(small.post("/v1/batch", {"batch": [large, call(messageId="m2")]}, key=entrance.key))
    assert_refused(
        entrance.collector.post("/v1/track", call(properties={"x": "y" * 33_000}), key=entrance.key),
        400,
        "event_too_large",
    )
    assert entrance.refused() == ["event_too_large"] * 4
    assert entrance.landed("message_id") == ["m1", "m2"]


def test_a_body_over_the_limit_is_refused(entrance: Entrance, small: Collecting) -> None:
    """The limit holds compressed or not, for any size. The connection stays open (vector 68)."""
    for collector, size in ((small, 1001), (small, 3_000_000), (entrance.collector, 501_000)):
        body = json.dumps({"batch": [call()]}).encode().ljust(size)
        for data, headers in ((body, {}), (gzip.compress(body), {"Content-Encoding": "gzip"})):
            reply = collector.post("/v1/batch", data, key=entrance.key, headers=headers)
            assert_refused(reply, 400, "payload_too_large")
            assert "connection" not in reply.headers
    assert entrance.landed() == []


@pytest.mark.parametrize(("count", "size"), [(100, 475_000), (15, 480 * 1024)])
def test_the_largest_batches_of_segments_libraries_pass(entrance: Entrance, count: int, size: int) -> None:
    """These are the libraries for Python and Node."""
    calls = [call(messageId=f"m{number}") for number in range(count)]
    body = json.dumps({"batch": calls, "sentAt": "2026-01-01T00:00:00Z"}).encode()
    padding = (size - len(body)) // count - len(', "properties": {"x": ""}')
    calls = [each | {"properties": {"x": "y" * padding}} for each in calls]
    body = json.dumps({"batch": calls, "sentAt": "2026-01-01T00:00:00Z"}).encode()
    assert size - count < len(body) <= size
    assert_taken(entrance.collector.post("/v1/batch", body.ljust(size), key=entrance.key))
    assert len(entrance.landed()) == count


def test_calls_beyond_the_limit_of_a_batch_go_to_quarantine(entrance: Entrance, small: Collecting) -> None:
    """The answer is success, as at Segment."""
    calls = [call(messageId=f"m{number}") for number in range(5)]
    assert_taken(small.post("/v1/batch", {"batch": calls}, key=entrance.key))
    assert entrance.landed("message_id") == ["m0", "m1", "m2"]
    assert entrance.refused() == ["too_many_items"] * 2
    assert [json.loads(payload)["messageId"] for payload in entrance.refused("payload")] == ["m3", "m4"]


def test_a_batch_may_have_2500_calls(entrance: Entrance) -> None:
    """The limit is 2,500 calls."""
    calls = [{"userId": "u", "event": "E", "messageId": str(number)} for number in range(2501)]
    assert_taken(entrance.collector.post("/v1/batch", {"batch": calls}, key=entrance.key))
    assert len(entrance.landed()) == 2500
    assert entrance.refused() == ["too_many_items"]


def test_answering_as_segment_does_hides_an_unknown_key(entrance: Entrance, segmentlike: Collecting) -> None:
    """The events are dropped. A request without a key is an error here too."""
    assert_taken(segmentlike.post("/v1/track", call(), key="unknown"))
    assert_taken(segmentlike.post("/v1/batch", {"batch": [call(writeKey="unknown")]}))
    assert_refused(segmentlike.post("/v1/track", call()), 401, "invalid_write_key")
    assert entrance.landed() == entrance.refused() == []


@pytest.mark.parametrize(
    ("fields", "headers", "address"),
    [
        ({}, {}, None),
        ({}, {"Origin": "https://shop.example"}, "127.0.0.1"),
        ({}, {"Origin": "https://shop.example", "X-Forwarded-For": "203.0.113.9, 198.51.100.7"}, "198.51.100.7"),
        ({}, {"Origin": "https://shop.example", "X-Forwarded-For": "2001:db8::1"}, None),
        ({}, {"X-Forwarded-For": "198.51.100.7"}, None),
        ({"context": {"direct": True}}, {"X-Forwarded-For": "198.51.100.7"}, "198.51.100.7"),
        ({"context": {"direct": True, "ip": "192.0.2.1"}}, {"X-Forwarded-For": "198.51.100.7"}, "192.0.2.1"),
    ],
)
def test_the_clients_address_is_added_where_segment_adds_it(
    entrance: Entrance, fields: dict[str, Any], headers: dict[str, str], address: str | None
) -> None:
    """Browsers and calls with `direct` get the address, in batches too, whose context may have `direct`."""
    assert_taken(entrance.collector.post("/v1/track", call(**fields), key=entrance.key, headers=headers))
    assert_taken(entrance.collector.post("/v1/batch", {"batch": [call()]} | fields, key=entrance.key, headers=headers))
    assert entrance.landed("payload #>> '{context,ip}'") == [address, address]


def test_the_address_of_an_untrusted_proxy_is_the_clients_address(entrance: Entrance) -> None:
    """Its header does not count."""
    with entrance.with_settings(trusted_proxies="") as collector:
        headers = {"Origin": "https://shop.example", "X-Forwarded-For": "198.51.100.7"}
        assert_taken(collector.post("/v1/track", call(), key=entrance.key, headers=headers))
    assert entrance.landed("payload #>> '{context,ip}'") == ["127.0.0.1"]


def test_browsers_of_any_origin_may_send(entrance: Entrance) -> None:
    """Browsers ask first, and can read every answer."""
    origin = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    asked = entrance.collector.send("OPTIONS", "/v1/t", headers=origin)
    assert asked.status == 200
    assert asked.headers["access-control-allow-origin"] == "*"
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert {"authorization", "content-type", "content-encoding"} <= set(
        asked.headers["access-control-allow-headers"].split(", ")
    )
    for reply, status in (
        (entrance.collector.post("/v1/t", call(), key=entrance.key, headers=origin), 200),
        (entrance.collector.post("/v1/t", call(), headers=origin), 401),
        (entrance.collector.post("/v1/t", "{", key=entrance.key, headers=origin), 400),
        (entrance.collector.send("GET", "/v1/t", headers=origin), 405),
        (entrance.collector.post("/v1/nothing", call(), headers=origin), 404),
    ):
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, "*")


def test_the_metrics_of_a_library_are_accepted_and_dropped(entrance: Entrance) -> None:
    """analytics.js sends its own metrics without a key."""
    assert_taken(entrance.collector.post("/v1/m", {"series": []}))
    assert entrance.landed() == entrance.refused() == []


@pytest.mark.parametrize("compressed", [False, True])
def test_segments_library_needs_only_another_host(entrance: Entrance, compressed: bool) -> None:
    """Its calls of every kind land, and it gets no error."""
    errors: list[Exception] = []
    client = Client(
        entrance.key,
        host=f"http://127.0.0.1:{entrance.collector.port}",
        gzip=compressed,
        on_error=lambda error, _: errors.append(error),
    )
    client.track("u1", "Email Opened", {"campaignId": 4310021})
    client.identify("u1", {"plan": "free"})
    client.page("u1", "News", "Home")
    client.screen("u1", "News", "Home")
    client.group("u1", "g1")
    client.alias("u0", "u1")
    client.shutdown()
    assert errors == []
    assert sorted(entrance.landed("payload ->> 'type'")) == sorted(KINDS.values())
    assert all(sent_at for sent_at in entrance.landed("payload ->> 'sentAt'"))


def test_segments_library_does_not_repeat_a_refused_request(entrance: Entrance) -> None:
    """The library reads code and message of the answer, and does not repeat a refused request for minutes."""
    errors: list[Exception] = []
    client = Client(
        "unknown",
        host=f"http://127.0.0.1:{entrance.collector.port}",
        on_error=lambda error, _: errors.append(error),
    )
    client.track("u1", "Email Opened")
    client.shutdown()
    [error] = errors
    assert isinstance(error, APIError)
    assert (error.status, error.code) == (401, "invalid_write_key")
