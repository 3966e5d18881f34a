"""Heads that come again: what is recognised is what a parser reads, and what is odd is left to the parser."""

from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.collector.heads import head_of

HEAD = b"POST /v1/track HTTP/1.1\r\nHost: collector\r\nContent-Length: %d\r\nAuthorization: Basic a2V5Og==\r\n\r\n"

tokens = st.text("abcXYZ09-_", min_size=1, max_size=8).map(str.encode)
header_lines = st.one_of(
    st.builds(lambda name, value: name + b": " + value, tokens, tokens),
    st.sampled_from([b"x-empty:", b"x-colon: content-length: 7", b"x-length:content-length:7", b"x: a\tb"]),
)
bodies = st.binary(max_size=40) | st.sampled_from([b"\r\n\r\n", b"content-length: 1\r\n\r\n", b"5", b""])


def request(before: list[bytes], name: bytes, after: list[bytes], body: bytes, zeros: int = 0) -> bytes:
    """Return a request with these header lines before and after that of its length."""
    length = b"%b%b%d" % (name, b"0" * zeros, len(body))
    return b"\r\n".join([b"POST /v1/track HTTP/1.1", *before, length, *after, b"", body])


def parsed(data: bytes) -> tuple[list[Any], bytes]:
    """Return what a parser makes of data, step by step, but for the length of the body; and the body."""
    seen: list[Any] = []
    bodies: list[bytes] = []

    class Listener:
        def on_message_begin(self) -> None:
            seen.append("begin")

        def on_url(self, url: bytes) -> None:
            seen.append(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            seen.append((name, b"" if name.lower() == b"content-length" else value))

        def on_body(self, body: bytes) -> None:
            bodies.append(body)

        def on_message_complete(self) -> None:
            seen.append("complete")

    parser = httptools.HttpRequestParser(Listener())
    parser.feed_data(data)
    seen += [parser.get_method(), parser.get_http_version(), parser.should_keep_alive()]
    return seen, b"".join(bodies)


@given(
    st.lists(header_lines, max_size=3),
    st.sampled_from([b"Content-Length: ", b"content-length:", b"CONTENT-LENGTH: "]),
    st.lists(header_lines, max_size=3),
    bodies,
    bodies,
)
def test_the_same_head_is_recognised_with_any_body(
    before: list[bytes], name: bytes, after: list[bytes], first: bytes, second: bytes
) -> None:
    """Whatever stands in the body, and however long it is."""
    head = head_of(request(before, name, after, first), first)
    assert head
    assert head.body_of(request(before, name, after, second)) == second


@given(
    st.tuples(st.lists(header_lines, max_size=2), st.just(b"Content-Length: "), st.lists(header_lines, max_size=2)),
    bodies,
    bodies,
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([b"", b"0", b"7", b"\n", b"\r\n", b" ", b":", b"G"]))),
)
def test_what_is_recognised_is_what_a_parser_reads(
    lines: tuple[list[bytes], bytes, list[bytes]],
    first: bytes,
    second: bytes,
    zeros: int,
    changes: list[tuple[int, bytes]],
) -> None:
    """Bytes of the next request may differ anywhere: either nothing is recognised, or all that a parser sees."""
    head = head_of(request(*lines, first), first)
    assert head
    data = request(*lines, second, zeros)
    for at, written in changes:
        data = data[:at] + written + data[at + 1 :]
    body = head.body_of(data)
    if body is not None:
        seen, _ = parsed(request(*lines, first))
        assert parsed(data) == (seen, body)


@pytest.mark.parametrize(
    "data",
    [
        HEAD % 3 + b"bo",
        HEAD % 3 + b"body!",
        HEAD % 4 + b"body" + HEAD % 4 + b"body",
        HEAD.replace(b"%d", b"+4") + b"body",
        HEAD.replace(b"%d", b"4 ") + b"body",
        HEAD.replace(b"%d", b"") + b"body",
        HEAD.replace(b"%d", b"\xd9\xa4") + b"body",
        HEAD.replace(b"%d", b"00000000004") + b"body",
        HEAD.replace(b"Host", b"host") % 4 + b"body",
        (HEAD % 4)[1:] + b"body",
        b"\r\n" + HEAD % 4 + b"body",
        HEAD % 4,
        b"",
    ],
)
def test_what_is_not_one_whole_request_with_that_head_is_not_recognised(data: bytes) -> None:
    """Too little, too much, another head, or a length that is none: all that is for the parser."""
    head = head_of(HEAD % 4 + b"body", b"body")
    assert head
    assert head.body_of(HEAD % 4 + b"more") == b"more"
    assert head.body_of(data) is None


@pytest.mark.parametrize(
    "data",
    [
        HEAD.replace(b"Host", b"Content-Length: 4\r\nHost") % 4 + b"body",
        HEAD.replace(b"Length:", b"Length:  ") % 4 + b"body",
        HEAD.replace(b"%d", b"4 ") + b"body",
        HEAD.replace(b"\r\nHost", b"\nHost") % 4 + b"body",
        HEAD.replace(b"Content-Length", b"Content-Size") % 4 + b"body",
        HEAD % 4 + b"body" + HEAD % 4 + b"body",
        HEAD % 4,
        b"body",
        HEAD.replace(b"collector", b"c" * 4096) % 4 + b"body",
    ],
)
def test_a_head_that_leaves_a_doubt_is_not_kept(data: bytes) -> None:
    """Where its length stands must be plain to see; and ten thousand of them must find room."""
    assert head_of(data, b"body") is None
