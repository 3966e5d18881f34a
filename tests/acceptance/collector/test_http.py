"""HTTP as real clients use it: slow, cut short, too large, pipelined, and over thousands of connections."""

import gc
import gzip
import itertools
import json
import logging
import os
import re
import resource
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import loader.collector.protocol
import loader.collector.server
from loader.postgres.database import open_database
from loader.raw.sources import add_key
from tests.conftest import loader_here
from tests.support.collector_thread import Collecting, Entrance, Line, assert_refused, assert_taken
from tests.support.waiting import wait_until, waiting


def call(name: str, **fields: Any) -> bytes:
    """Return the body of a valid track call with an id."""
    return json.dumps({"event": "Email Opened", "userId": "u1", "messageId": name} | fields).encode()


def basic(key: str) -> dict[str, str]:
    """Return the header that contains a key as Segment's libraries send it."""
    return {"Authorization": "Basic " + b64encode(f"{key}:".encode()).decode()}


def request(entrance: Entrance, body: bytes, *headers: str, version: str = "1.1", length: int | None = None) -> bytes:
    """Return a request to the tracking API as its bytes."""
    authorization = basic(entrance.key)["Authorization"]
    lines = [f"POST /v1/track HTTP/{version}", "Host: collector", f"Authorization: {authorization}", *headers]
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def is_closed(collector: Collecting) -> bool:
    """Return whether a collector accepts no connection any more."""
    try:
        Line(collector.port).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture(scope="module")
def hasty(module_entrance: Entrance) -> Iterator[Collecting]:
    """A collector with short time limits."""
    with module_entrance.with_settings(request_seconds=0.2) as collector:
        yield collector


def test_requests_sent_at_once_are_answered_in_their_order(entrance: Entrance) -> None:
    """Valid and invalid requests share a connection."""
    bodies = [call("a"), call("b", userId=None), b"{", call("c", properties={"x": "y" * 30_000}), call("d")]
    with entrance.collector.line() as line:
        line.send(b"".join(request(entrance, body) for body in bodies))
        assert [line.reply().status for _ in bodies] == [200, 400, 400, 200, 200]
    assert entrance.landed("message_id") == ["a", "c", "d"]


def test_requests_on_and_off_the_fast_path_keep_their_order(entrance: Entrance) -> None:
    """Small requests, and requests too large for the fast path, alternate on one connection."""
    names = [f"m{number}" for number in range(12)]
    bodies = [call(name) + b" " * (60_000 if number % 3 else 0) for number, name in enumerate(names)]
    with entrance.collector.line() as line:
        line.send(
            b"".join(request(entrance, body) for body in bodies)
            + b"GET /health HTTP/1.1\r\nHost: collector\r\n\r\n"
            + request(entrance, call("last"))
        )
        for _ in names:
            assert_taken(line.reply())
        assert line.reply().json == {"status": "ok"}
        assert_taken(line.reply())
    assert entrance.landed("message_id") == [*names, "last"]


_numbers = itertools.count()


class Sent(NamedTuple):
    """A request, and its response."""

    data: bytes
    status: int
    message_id: str


def requests(entrance: Entrance) -> st.SearchStrategy[Sent]:
    """Return requests of every kind that leaves its connection open, most of them equal."""
    origin = "Origin: https://example.com"

    def make(kind: str, size: int) -> Sent:
        name = f"m{next(_numbers)}"
        body = call(name, properties={"x": "y" * size})
        data = request(entrance, body)
        status = 200
        if kind == "bad":
            data, status = request(entrance, call(name, userId=None, properties={"x": "y" * size})), 400
        elif kind == "broken":
            data, status = request(entrance, body[:-1] + b" " * size), 400
        elif kind == "long":
            data = request(entrance, body, origin)
        elif kind == "chunked":
            data = request(
                entrance, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked", length=-1
            )
        elif kind == "other":
            data = data.replace(b"/v1/track", b"/v1/identify")
        elif kind == "unknown":
            data, status = data.replace(b"/v1/track", b"/v1/attack"), 404
        return Sent(data, status, name if status == 200 else "")

    kinds = st.sampled_from(["good", "good", "good", "good", "bad", "broken", "long", "chunked", "other", "unknown"])
    return st.builds(make, kinds, st.sampled_from([0, 1, 9, 90, 9000]))


@settings(max_examples=25)
@given(st.data())
def test_order_and_pieces_of_requests_do_not_change_their_answers(
    module_entrance: Entrance, data: st.DataObject
) -> None:
    """Earlier requests on the connection do not matter, nor whether the client has waited for their answers."""
    module_entrance.empty()
    piece = st.sampled_from([0, 0, 0, 1, 30, 0.5, -1])
    # All requests are drawn before the first is sent. A rejected example would leave events otherwise.
    plan = data.draw(st.lists(st.tuples(requests(module_entrance), piece, st.booleans()), min_size=1, max_size=12))
    unanswered: list[Sent] = []
    with module_entrance.collector.line() as line:
        for each, at, is_waited_for in plan:
            cut = at if isinstance(at, int) else int(len(each.data) * at)
            line.send(each.data[:cut])
            line.send(each.data[cut:])
            unanswered.append(each)
            if is_waited_for:
                assert [line.reply().status for _ in unanswered] == [one.status for one in unanswered]
                unanswered.clear()
        assert [line.reply().status for _ in unanswered] == [one.status for one in unanswered]
        assert not line.answered()
    assert module_entrance.landed("message_id") == [each.message_id for each, _, _ in plan if each.message_id]


def test_an_idle_connection_is_closed(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is the same after the first and after a later request, and no request is under way."""
    monkeypatch.setattr(loader.collector.protocol, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(loader.collector.server, "IDLE_SECONDS", 0.5)
    with entrance.with_settings() as other, Line(other.port) as line, Line(other.port) as held:
        until = time.monotonic() + 1.2
        count = 0
        while time.monotonic() < until:
            line.send(request(entrance, call(f"m{count}")))
            assert_taken(line.reply())
            count += 1
        started = time.monotonic()
        assert line.rest() == b""
        assert time.monotonic() - started >= 0.45
        assert held.rest() == b""


def test_a_reset_connection_leaves_no_object_in_memory(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later request may be under way."""
    monkeypatch.setattr(loader.collector.protocol, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(loader.collector.server, "IDLE_SECONDS", 0.2)

    def left() -> int:
        gc.collect()
        return sum(isinstance(each, loader.collector.protocol.HttpProtocol) for each in gc.get_objects())

    with entrance.with_settings() as other:
        before = left()
        lines = [other.line() for _ in range(5)]
        for number, line in enumerate(lines):
            line.send(request(entrance, call(f"answered-{number}")))
            assert_taken(line.reply())
        entrance.connection.execute("begin; lock table raw.events in share row exclusive mode")
        for number, line in enumerate(lines):
            line.send(request(entrance, call(f"reset-{number}")))
        wait_until(lambda: waiting(entrance.connection) > 0, "a batch to wait for the lock")
        for line in lines:
            line.reset()
        entrance.connection.execute("commit")
        wait_until(lambda: left() <= before, "the connections to be forgotten")
    assert len(set(entrance.landed("message_id"))) == 10


def test_a_revoked_key_is_refused_on_an_open_connection(entrance: Entrance) -> None:
    """It worked before on that connection."""
    with open_database(entrance.settings) as database, database.begin() as connection:
        shown = replace(entrance, key=add_key(connection, "Iterable"))
    with entrance.collector.line() as line:
        for name in "abc":
            line.send(request(shown, call(name)))
            assert_taken(line.reply())
        entrance.connection.execute("""
            update raw.write_keys set revoked_at = now() where id = (select max(id) from raw.write_keys)
        """)

        def is_refused() -> bool:
            line.send(request(shown, call("late")))
            return line.reply().status == 401

        wait_until(is_refused, "the key to be refused")
        line.send(request(shown, call("too late")))
        assert_refused(line.reply(), 401, "invalid_write_key")
    assert "too late" not in entrance.landed("message_id")


def test_d1_the_advice_of_a_401_works_as_typed(entrance: Entrance) -> None:
    """The command makes a key that the collector accepts."""
    with entrance.collector.line() as line:
        line.send(request(replace(entrance, key="unknown"), call("stranger")))
        reply = line.reply()
    assert reply.status == 401
    advised = re.search(r"`loader (.*?)`", reply.json["message"])
    assert advised
    loader = loader_here(entrance.settings)
    # The answer contains no name of a source. With several sources, the command lists them and asks for a name.
    assert "There are several sources (Iterable, Second)" in loader(*advised[1].split()).stderr
    made = loader(*advised[1].split(), "Iterable")
    assert made.returncode == 0, made.stderr
    invited = request(replace(entrance, key=made.stdout.strip()), call("invited"))

    def is_taken() -> bool:
        with entrance.collector.line() as line:
            line.send(invited)
            return line.reply().status == 200

    # The collector reads the keys at most once a second.
    wait_until(is_taken, "the key to be taken")


@pytest.mark.parametrize("zeros", [1, 17, 18, 30, 5000])
def test_a_length_may_begin_with_zeros(entrance: Entrance, zeros: int) -> None:
    """The head may contain any number of zeros that fits, and earlier requests are not affected."""
    odd = request(entrance, call("odd"), length=-1).replace(
        b"\r\n\r\n", b"\r\nContent-Length: %s%d\r\n\r\n" % (b"0" * zeros, len(call("odd"))), 1
    )
    with entrance.collector.line() as line:
        line.send(request(entrance, call("before")) + odd + request(entrance, call("after")))
        for _ in range(3):
            assert_taken(line.reply())
    assert entrance.landed("message_id") == ["before", "odd", "after"]


@pytest.mark.parametrize(
    "headers",
    [["Content-Length: 5"], ["Transfer-Encoding: chunked"], ["Content-Length: 99999999999999999999999"]],
)
def test_a_request_of_two_lengths_is_refused(entrance: Entrance, headers: list[str]) -> None:
    """The end of the request is ambiguous, so no event of it lands. Earlier requests get their answers."""
    with entrance.collector.line() as line:
        line.send(request(entrance, call("before")) + request(entrance, call("odd"), *headers))
        assert_taken(line.reply())
        assert_refused(line.reply(), 400, "bad_request")
        assert line.rest() == b""
    assert entrance.landed("message_id") == ["before"]


def test_the_first_of_two_keys_counts(entrance: Entrance) -> None:
    """This holds for every place of a key."""
    other = f"Authorization: {basic(entrance.other_key)['Authorization']}"
    with entrance.collector.line() as line:
        for odd in ([], ["Origin: https://example.com"]):
            line.send(request(entrance, call("a"), other, *odd))
            assert_taken(line.reply())
    assert entrance.landed("source") == ["iterable", "iterable"]


def test_a_request_may_come_byte_by_byte(entrance: Entrance) -> None:
    """The collector answers once, when the request is complete."""
    with entrance.collector.line() as line:
        for data in request(entrance, call("a")) + request(entrance, call("b"))[:-1]:
            line.send(bytes([data]))
        assert_taken(line.reply())
        assert not line.answered()
        line.send(b"}")
        assert_taken(line.reply())
    assert entrance.landed("message_id") == ["a", "b"]


def test_a_request_with_connection_close_ends_its_connection(entrance: Entrance) -> None:
    """The answer announces the end, and later bytes are not a request."""
    with entrance.collector.line() as line:
        line.send(request(entrance, call("a"), "Connection: close") + request(entrance, call("b")))
        reply = line.reply()
        assert_taken(reply)
        assert reply.headers["connection"] == "close"
        assert line.rest() == b""
    assert entrance.landed("message_id") == ["a"]


def test_events_land_when_their_sender_is_gone(entrance: Entrance) -> None:
    """Complete requests become events, without a sender that waits. Other connections are not affected."""
    entrance.connection.execute("begin; lock table raw.events in share row exclusive mode")
    with entrance.collector.line() as staying:
        with entrance.collector.line() as line:
            line.send(request(entrance, call("gone")))
            staying.send(request(entrance, call("staying")))
            wait_until(lambda: waiting(entrance.connection) > 0, "a COPY to wait for the lock")
        entrance.connection.execute("commit")
        assert_taken(staying.reply())
    wait_until(lambda: set(entrance.landed("message_id")) == {"gone", "staying"}, "both to land")


@pytest.mark.parametrize("tasks", [(True, True, True), (True, False, True), (False, True, False)])
def test_c9_a_sender_that_is_gone_leaves_no_error_in_the_log(
    entrance: Entrance, caplog: pytest.LogCaptureFixture, tasks: tuple[bool, ...]
) -> None:
    """A connection is reset while its first request waits for the database and others wait for the first.

    The collector does not read then, so the answer to the first request finds the connection lost. A request with
    `Expect` has a task of its own.
    """
    entrance.connection.execute("begin; lock table raw.events in share row exclusive mode")
    with entrance.collector.line() as line:
        headers = [["Expect: 100-continue"] if task else [] for task in tasks]
        line.send(b"".join(request(entrance, call(str(n)), *each) for n, each in enumerate(headers)))
        wait_until(lambda: waiting(entrance.connection) > 0, "a batch to wait for the lock")
        before = value(entrance.collector, "loader_connections")
        line.reset()
    entrance.connection.execute("commit")
    wait_until(lambda: entrance.landed("message_id")[:1] == ["0"], "the event to land")
    wait_until(lambda: value(entrance.collector, "loader_connections") < before, "the connection to be lost")
    assert_taken(entrance.collector.post("/v1/track", call("next"), key=entrance.key))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("digits", ["9" * 18, "9" * 19, "9" * 5000, "0" * 5000 + "99999999"], ids=len)
def test_c9_a_length_of_thousands_of_digits_is_too_large(
    entrance: Entrance, caplog: pytest.LogCaptureFixture, digits: str
) -> None:
    """A sender that asks first, even without a key, gets an answer with the reason."""
    with entrance.collector.line() as line:
        line.send(
            f"POST /v1/track HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {digits}\r\n\r\n".encode()
        )
        reply = line.reply()
    assert reply.status == 400
    assert reply.json["code"] in {"payload_too_large", "bad_request"}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_stopping_collector_answers_open_requests_and_closes_connections(entrance: Entrance) -> None:
    """The request may be on any path, incomplete, or behind another request."""
    with ThreadPoolExecutor(1) as beside:
        with entrance.with_settings() as other:
            lines = [Line(other.port) for _ in range(3)]
            entrance.connection.execute("begin; lock table raw.events in share row exclusive mode")
            lines[0].send(request(entrance, call("short")))
            lines[1].send(request(entrance, call("long"), "Origin: https://example.com"))
            lines[2].send(request(entrance, call("first")) + request(entrance, call("second")))
            wait_until(lambda: waiting(entrance.connection) > 0, "a COPY to wait for the lock")

            def release() -> None:
                wait_until(lambda: is_closed(other), "the collector to let nobody in")
                entrance.connection.execute("commit")

            released = beside.submit(release)
        released.result()
    for line, count in zip(lines, (1, 1, 2), strict=True):
        replies = [line.reply() for _ in range(count)]
        for reply in replies:
            assert_taken(reply)
        assert replies[-1].headers["connection"] == "close"
        assert line.rest() == b""
        line.close()
    assert set(entrance.landed("message_id")) == {"short", "long", "first", "second"}


def test_large_requests_may_follow_each_other_closely(entrance: Entrance) -> None:
    """The end of a large body is not part of the next request's head."""
    bodies = [call(str(number)) + b" " * 300_000 for number in range(6)]
    with entrance.collector.line() as line:
        line.send(b"".join(request(entrance, body) for body in bodies))
        for _ in bodies:
            assert_taken(line.reply())


@pytest.mark.parametrize("sizes", [(1,), (7,), (5, 1, 40), (4096,)])
def test_a_body_may_come_in_chunks(entrance: Entrance, sizes: tuple[int, ...]) -> None:
    """Chunks may have any size, and the length is not announced."""
    body = call("a", properties={"x": "y" * 300})
    chunks = []
    at = 0
    while at < len(body):
        size = sizes[len(chunks) % len(sizes)]
        part = body[at : at + size]
        chunks.append(b"%x\r\n%b\r\n" % (len(part), part))
        at += size
    with entrance.collector.line() as line:
        line.send(request(entrance, b"", "Transfer-Encoding: chunked", length=-1))
        for chunk in [*chunks, b"0\r\n\r\n"]:
            line.send(chunk)
        assert_taken(line.reply())
        line.send(request(entrance, call("b")))
        assert_taken(line.reply())
    assert entrance.landed("message_id") == ["a", "b"]


def test_a_broken_chunk_is_refused(entrance: Entrance) -> None:
    """A request before it that is still being answered gets its answer first."""
    for before in (b"", request(entrance, call("a"))):
        with entrance.collector.line() as line:
            line.send(before + request(entrance, b"", "Transfer-Encoding: chunked", length=-1) + b"5\r\n{")
            line.send(b"nope!\r\nzz\r\n")
            if before:
                assert_taken(line.reply())
            assert_refused(line.reply(), 400, "bad_request")
            assert line.rest() == b""
    assert entrance.landed("message_id") == ["a"]


def test_excess_bytes_after_a_body_are_refused(entrance: Entrance) -> None:
    """The bytes may be the rest of a body that is longer than announced.

    The request before them gets its answer first.
    """
    body = call("a")
    with entrance.collector.line() as line:
        line.send(request(entrance, body + b'{"more":1}', length=len(body)))
        assert_taken(line.reply())
        assert_refused(line.reply(), 400, "bad_request")
        assert line.rest() == b""
    assert entrance.landed("message_id") == ["a"]


def test_a_truncated_body_lands_no_event(entrance: Entrance) -> None:
    """The announced length is longer, so the received bytes do not count as the whole body."""
    body = call("a")
    with entrance.collector.line() as line:
        line.send(request(entrance, body[:-9], length=len(body) - 9))
        assert_refused(line.reply(), 400, "truncated_line")
    with entrance.collector.line() as line:
        line.send(request(entrance, body, length=len(body) + 1))
        line.end()
        assert line.rest() == b""
    assert entrance.landed() == []


@pytest.mark.parametrize("sent", ["nothing", "one byte", "most"])
def test_an_incomplete_body_gets_a_timeout(entrance: Entrance, hasty: Collecting, sent: str) -> None:
    """The answer gives the reason and ends the connection."""
    body = {"nothing": b"", "one byte": b"{", "most": call("a")[:-1]}[sent]
    with hasty.line() as line:
        line.send(request(entrance, body, length=1000))
        reply = line.reply()
        assert_refused(reply, 408, "timeout")
        assert reply.headers["connection"] == "close"
        assert line.rest() == b""


def test_a_slow_body_gets_a_timeout(entrance: Entrance, hasty: Collecting) -> None:
    """The limit is the time of the whole body, not the time between two bytes."""
    with hasty.line() as line:
        line.send(request(entrance, b"", length=1000))
        wait_until(lambda: line.answered(b" "), "an answer to a body that drips")
        assert_refused(line.reply(), 408, "timeout")


@pytest.mark.parametrize("head", [b"POST /v", b"POST /v1/track HTTP/1.1\r\nHost: c", b"GET /health HTTP/1.1\r\n"])
def test_an_incomplete_or_slow_head_gets_a_timeout(entrance: Entrance, hasty: Collecting, head: bytes) -> None:
    """This includes a head that arrives slowly, for the first request and for later requests."""
    for before in (b"", b"GET /health HTTP/1.1\r\n\r\n"):
        for dripping in (b"", b"a"):
            with hasty.line() as line:
                line.send(before + head)
                if before:
                    assert line.reply().status == 200
                wait_until(lambda line=line, dripping=dripping: line.answered(dripping), "an answer to half a head")
                assert_refused(line.reply(), 408, "timeout")
                assert line.rest() == b""


def test_a_head_without_end_is_refused(entrance: Entrance) -> None:
    """The refusal comes before the head fills the memory, and the client can read the reason."""
    with entrance.collector.line() as line:
        line.send(b"GET /health HTTP/1.1\r\n" + b"X-Much: more of the same\r\n" * 100_000)
        assert_refused(line.reply(), 431, "head_too_large")
        assert line.rest() == b""


def test_a_half_closed_connection_gets_its_answers(entrance: Entrance) -> None:
    """The client gets its answers."""
    with entrance.collector.line() as line:
        line.send(request(entrance, call("a")) + request(entrance, call("b")))
        line.end()
        assert_taken(line.reply())
        assert_taken(line.reply())
        assert line.rest() == b""
    assert entrance.landed("message_id") == ["a", "b"]


def test_a_request_with_expect_gets_100_continue(entrance: Entrance) -> None:
    """If the announced body is too large, the client gets that error instead."""
    with entrance.collector.line() as line:
        line.send(request(entrance, b"", "Expect: 100-continue", length=len(call("a"))))
        assert line.reply().status == 100
        line.send(call("a"))
        assert_taken(line.reply())
        line.send(request(entrance, b"", "Expect: 100-continue", length=600_000))
        assert_refused(line.reply(), 400, "payload_too_large")
        assert line.rest() == b""


def test_the_answer_to_a_far_too_large_body_can_be_read(entrance: Entrance) -> None:
    """The client reads only after it has sent everything."""
    with entrance.collector.line() as line:
        line.send(request(entrance, b" " * 20_000_000))
        assert_refused(line.reply(), 400, "payload_too_large")
        line.send(request(entrance, call("a")))
        assert_taken(line.reply())


def test_http_1_0_is_answered_and_closed(entrance: Entrance) -> None:
    """The connection of HTTP 1.0 ends after each answer."""
    with entrance.collector.line() as line:
        line.send(request(entrance, call("a"), version="1.0"))
        assert_taken(line.reply())
        assert line.rest() == b""


@pytest.mark.parametrize("cut", [0, 60, 200, 250, 330])
def test_an_upgrade_request_is_answered_in_http_1_1(entrance: Entrance, cut: int) -> None:
    """Java's client and `curl --http2` ask for an upgrade. The connection continues."""
    data = request(entrance, call("a"), "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA")
    with entrance.collector.line() as line:
        line.send(data[:cut])
        line.send(data[cut:] + request(entrance, call("b")))
        assert_taken(line.reply())
        assert_taken(line.reply())
    assert entrance.landed("message_id") == ["a", "b"]


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"hello\r\n\r\n", b"CONNECT a:80 HTTP/1.1\r\n\r\n"])
def test_bytes_that_are_not_http_are_refused(entrance: Entrance, data: bytes) -> None:
    """Such bytes may be TLS on a port without TLS."""
    with entrance.collector.line() as line:
        line.send(data)
        assert_refused(line.reply(), 400, "bad_request")
        assert line.rest() == b""


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/track", "POST, OPTIONS"),
        ("PUT", "/webhooks/segment", "POST, OPTIONS"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("GET", "/", None),
        ("POST", "/v1", None),
        ("POST", "/v1/Track", None),
        ("POST", "/v1/track%2F%E2%9C%93", None),
    ],
)
def test_an_unknown_path_or_method_gets_an_error(entrance: Entrance, method: str, path: str, allow: str | None) -> None:
    """The answer is JSON and names the allowed methods."""
    reply = entrance.collector.send(method, path)
    assert_refused(reply, *((405, "method_not_allowed") if allow else (404, "not_found")))
    assert reply.headers.get("allow") == allow


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/openapi.json", "/v1/track", "/nothing"])
def test_the_answer_to_head_has_no_body(entrance: Entrance, path: str) -> None:
    """The next bytes on the connection are the next answer."""
    with entrance.collector.line() as line:
        line.send(b"HEAD %b HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n" % path.encode())
        assert line.reply("HEAD").status in {200, 404, 405}
        assert line.reply().json == {"status": "ok"}


def test_health_and_ready_report_the_state_of_the_collector(entrance: Entrance) -> None:
    """The collector is alive, and can make events durable in the database."""
    assert entrance.collector.get("/health").json == {"status": "ok"}
    ready = entrance.collector.get("/ready")
    assert (ready.status, ready.json) == (200, {"status": "ready", "writing_to": "database"})


def test_without_the_database_the_collector_needs_a_spool_to_be_ready(
    entrance: Entrance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without database and spool it is alive but not ready, and asks clients to try again."""
    monkeypatch.setattr(loader.collector.server, "_START_SECONDS", 0.0)
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    with entrance.with_settings(database_url=nowhere) as collector:
        ready = collector.get("/ready")
        assert (ready.status, ready.json["writing_to"]) == (200, "spool")
        assert_taken(collector.post("/v1/track", call("a"), key=entrance.key))
    with entrance.with_settings(database_url=nowhere, spool_bytes=0) as collector:
        assert collector.get("/health").status == 200
        for reply in (collector.get("/ready"), collector.post("/v1/track", call("b"), key=entrance.key)):
            assert_refused(reply, 503, "unavailable")
            assert reply.headers["retry-after"] == "1"
    with entrance.with_settings():
        wait_until(lambda: entrance.landed("message_id") == ["a"], "the spooled event")


def test_a_request_beyond_the_queue_limit_gets_503(entrance: Entrance) -> None:
    """Another request is under way. The answer is the same as without a database."""
    with entrance.with_settings(queue_bytes=1) as collector, collector.line() as line:
        for name in ("a", "b"):
            line.send(request(entrance, call(name)))
            assert_taken(line.reply())
        entrance.connection.execute("begin; lock table raw.events in share mode")
        try:
            with collector.line() as other:
                line.send(request(entrance, call("c")))
                wait_until(lambda: value(collector, "loader_queue_bytes") > 0, "the event on its way")
                other.send(request(entrance, call("d")))
                assert_refused(other.reply(), 503, "unavailable")
        finally:
            entrance.connection.execute("rollback")
        assert_taken(line.reply())


def values(collector: Collecting) -> dict[tuple[str, ...], float]:
    """Return the metrics of the collector, by name and labels."""
    text = collector.get("/metrics").body.decode()
    return {
        (sample.name, *(f"{name}={each}" for name, each in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(collector: Collecting, *sample: str) -> float:
    """Return one of these metrics."""
    return values(collector).get(sample, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/track", {"event": "Email Opened", "userId": "u"}),
        ("/v1/batch", {"batch": [{"type": "track", "event": "Email Opened", "userId": "u"}]}),
        ("/webhooks/iterable", {"eventName": "emailOpen", "email": "a@example.com", "dataFields": {}}),
        ("/webhooks/segment", {"type": "track", "event": "Email Opened", "userId": "u", "messageId": "m"}),
    ],
)
def test_requests_of_every_route_take_the_fast_path(entrance: Entrance, path: str, body: dict[str, object]) -> None:
    """The test uses the real server, so an upgrade of uvicorn without the hook fails here."""
    before = value(entrance.collector, "loader_fast_requests_total")
    assert_taken(entrance.collector.post(path, body, key=entrance.key))
    compressed = gzip.compress(json.dumps(body).encode())
    headers = {"Content-Encoding": "gzip", "Origin": "https://shop.example", "X-Request-Id": "1"}
    assert_taken(entrance.collector.send("POST", path, compressed, key=entrance.key, headers=headers))
    assert value(entrance.collector, "loader_fast_requests_total") == before + 2


def test_the_metrics_count_requests_and_events(entrance: Entrance) -> None:
    """The metrics have Prometheus' format."""
    before = values(entrance.collector)
    batch = {"batch": [json.loads(call("a")) | {"type": "track"}, {}]}
    assert_taken(entrance.collector.post("/v1/b/", batch, key=entrance.key))
    assert_taken(entrance.collector.post("/v1/t", call("b"), key=entrance.key))
    entrance.collector.post("/v1/t", call("c"), key="unknown")
    entrance.collector.get("/nothing/of/that/name")
    with entrance.collector.line():
        after = values(entrance.collector)
    moved = {sample: number - before.get(sample, 0) for sample, number in after.items()}
    expected = {
        ("loader_requests_total", "code=200", "route=/v1/batch"): 1,
        ("loader_requests_total", "code=200", "route=/v1/track"): 1,
        ("loader_requests_total", "code=401", "route=/v1/track"): 1,
        ("loader_requests_total", "code=404", "route=other"): 1,
        ("loader_fast_requests_total",): 2,
        ("loader_landed_events_total",): 2,
        ("loader_quarantined_messages_total", "reason=bad_request"): 1,
        ("loader_batch_events_count",): 2,
        ("loader_commit_seconds_count",): 2,
    }
    assert {sample: moved[sample] for sample in expected} == expected
    assert after["loader_connections",] >= 2
    assert after["loader_database_up",] == 1


# In a separate process, because each process has a limit of open files.
_HOLD = """
import resource, socket, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
sys.stdin.read()
"""


def serve_beside_idle(entrance: Entrance, count: int) -> None:
    """Send requests while many connections are open and silent."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 500:
        pytest.skip(f"this machine lets a process have {hard} open files")
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(entrance.collector.port), str(count)], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        wait_until(lambda: value(entrance.collector, "loader_connections") >= count, "all connections")
        for number in range(50):
            assert_taken(entrance.collector.post("/v1/track", call(str(number)), key=entrance.key))
        process.stdin.close()
    assert len(entrance.landed()) == 50


def test_two_thousand_idle_connections_do_not_block_requests(entrance: Entrance) -> None:
    """A connection without a request costs little."""
    serve_beside_idle(entrance, 2000)


@pytest.mark.soak
def test_ten_thousand_idle_connections_do_not_block_requests(entrance: Entrance) -> None:
    """The same with ten thousand connections."""
    serve_beside_idle(entrance, 10_000)


def test_processes_share_a_port_and_log_no_payload_or_key(entrance: Entrance) -> None:
    """The metrics are those of all processes. Errors are logged in JSON, without a payload, an address or a key."""
    secret = "s3cr3t-value"
    environment = os.environ | {
        "DATABASE_URL": entrance.settings.database_url,
        "LOADER_HOME": str(entrance.settings.home),
        "LOADER_SPOOL": str(entrance.settings.spool),
        "LOADER_REQUEST_SECONDS": "0.2",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "loader", "serve", "--port", "0", "--processes", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        try:
            log = [process.stderr.readline() for _ in range(4)]
            [port] = {int(found) for line in log for found in re.findall(r"127\.0\.0\.1:(\d+)", line)}
            collector = Collecting(port)
            broken = json.dumps({"userId": f"{secret}@example.com", "writeKey": secret, "event": secret})
            headers = {"X-Forwarded-For": secret, "Authorization": secret, "Cookie": secret}
            paths = ("/v1/track", "/v1/batch", "/webhooks/segment", "/webhooks/iterable", f"/{secret}")
            bodies = (broken, broken[:-3], f"[{broken}]", "\\ud800" + broken)
            ways = (headers, {"X-Write-Key": entrance.key}, {"Content-Encoding": "gzip"}, basic(entrance.key))
            # All requests at once, because a request with an unknown key waits for the keys to be read again.
            with ThreadPoolExecutor(80) as senders:
                for path, body, way in itertools.product(paths, bodies, ways):
                    senders.submit(collector.post, path, body, headers=way)
            # PostgreSQL refuses the row, and its error contains the value.
            unfit = call("a", userId=secret, x=1).replace(b"1}", b"1e200000}")
            assert_taken(collector.post("/v1/track", unfit, key=entrance.key))
            assert "refused_by_database" in entrance.refused()
            head = f"POST /v1/track HTTP/1.1\r\nX: {secret}\r\nContent-Length: 9\r\n\r\n"
            for sent in (f"{secret}\r\n\r\n", head + secret):
                with collector.line() as line:
                    line.send(sent.encode())
                    line.rest()
            assert value(collector, "loader_requests_total", "code=404", "route=other") == 16
            assert value(collector, "loader_landed_events_total") >= 0
        finally:
            process.terminate()
        log += process.stderr.readlines()
    assert process.returncode == 0
    for line in log:
        assert {"event", "level", "timestamp"} <= json.loads(line).keys()
    assert secret not in "".join(log)
    assert entrance.key not in "".join(log)


@pytest.fixture
def logs_of_a_command() -> Iterator[None]:
    """Configure structlog as a permanent command that ran in this process would."""
    before = structlog.get_config()
    structlog.configure(processors=[structlog.stdlib.filter_by_level], logger_factory=structlog.stdlib.LoggerFactory())
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("logs_of_a_command")
def test_a_command_beside_a_collector_has_its_own_output(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector logs in another thread of this process, while the command writes to the process's output."""
    monkeypatch.setattr("loader.collector.app.REPORT_SECONDS", 0.001)
    with entrance.with_settings() as collector, ThreadPoolExecutor(1) as beside:
        ended = threading.Event()

        def refuse() -> None:
            while not ended.is_set():
                collector.post("/v1/track", {}, key="unknown")

        refusing = beside.submit(refuse)
        try:
            made = loader_here(entrance.settings)("key", "add", "Iterable")
        finally:
            ended.set()
        refusing.result()
    assert len(made.stdout.split()) == 1
