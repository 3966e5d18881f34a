"""Request bodies within their limits, and the form of errors."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.collector.http import DisconnectedError, HttpError, header, read_body, unavailable

LIMIT = 1000


def packed(data: bytes) -> bytes:
    """Return compressed data, with the same bytes for each call."""
    return gzip.compress(data, mtime=0)


def read(*parts: bytes, limit: int = LIMIT, whole: bool = True, **headers: str) -> bytes:
    """Return the body of a request that arrives in parts; a request that is not `whole` ends without waiting."""

    async def run() -> bytes:
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if whole:
            messages[-1]["more_body"] = False
        arriving = iter(messages)

        async def receive() -> dict[str, Any]:
            for message in arriving:
                return message
            raise AssertionError

        return await read_body(scope(**headers), receive, limit)

    return asyncio.run(run())


def scope(**headers: str) -> dict[str, Any]:
    """Return a request with headers."""
    return {"headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]}


def refusal(*parts: bytes, **options: Any) -> HttpError:
    """Return the error that refuses a request."""
    with pytest.raises(HttpError) as refused:
        read(*parts, **options)
    answer = json.loads(refused.value.response.body)
    assert answer["success"] is False
    assert answer["code"]
    assert answer["message"]
    return refused.value


def code(*parts: bytes, **options: Any) -> str:
    """Return the code of the error that refuses a request."""
    return str(json.loads(refusal(*parts, **options).response.body)["code"])


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    st.sampled_from(["", "identity", "gzip", "x-gzip", "GZIP"]),
)
def test_a_body_in_parts_of_any_size_is_read_completely(parts: Sequence[bytes], encoding: str) -> None:
    """A body may arrive in parts of any size, uncompressed or compressed in as many members."""
    headers = {"content_encoding": encoding} if encoding else {}
    sent = [packed(part) for part in parts] if "g" in encoding.lower() else parts
    assert read(*sent, **headers) == b"".join(parts)


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_compressed_body_may_arrive_cut_anywhere(cut: int) -> None:
    """The borders of members and of network packets are independent."""
    data = packed(b"first") + packed(b"second")
    assert read(data[:cut], data[cut:], content_encoding="gzip") == b"firstsecond"


def test_a_body_may_have_exactly_the_limit_of_bytes() -> None:
    """The limit counts the bytes as they came and the decompressed bytes."""
    full = b"x" * LIMIT
    assert read(full) == full
    assert read(packed(full), content_encoding="gzip") == full
    assert code(full + b"x") == "payload_too_large"
    assert code(full, b"x") == "payload_too_large"
    assert code(packed(full + b"x"), content_encoding="gzip") == "payload_too_large"
    assert code(packed(full) + packed(b"x"), content_encoding="gzip") == "payload_too_large"


def test_a_decompression_bomb_is_refused_with_little_memory() -> None:
    """A hundred megabytes compressed to a hundred kilobytes need no more memory than the limit."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(100)), packer.flush()])
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        assert code(bomb, limit=500_000, content_encoding="gzip") == "payload_too_large"
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_thousands_of_empty_gzip_members_are_refused() -> None:
    """Each member is little work, and thousands of members are much work."""
    assert code(packed(b"") * 5000, limit=500_000, content_encoding="gzip") == "bad_request"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (packed(b"x" * 100)[:-1], "gzip"),
        (packed(b"x" * 100)[:15], "gzip"),
        (packed(b"x") + b"and then", "gzip"),
        (packed(b"x")[:-8] + bytes(8), "gzip"),
        (b"{}", "gzip"),
        (zlib.compress(b"x"), "gzip"),
        (b"{}", "br"),
        (packed(b"{}"), "gzip, gzip"),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_refused(data: bytes, encoding: str) -> None:
    """The data may be cut short, damaged, uncompressed, compressed with another method, or followed by other bytes."""
    refused = refusal(data, content_encoding=encoding)
    assert refused.response.status == 400
    assert json.loads(refused.response.body)["code"] == "bad_request"


def test_an_empty_body_is_empty() -> None:
    """The body may be compressed or not."""
    assert read(b"") == read(b"", content_encoding="gzip") == b""


def test_a_large_body_is_read_to_its_end_and_thrown_away() -> None:
    """Most clients read the answer only after they have sent everything. So the connection can continue."""
    answer = refusal(*[b"x" * 600] * 5).response
    assert answer.status == 400
    assert answer.headers == ()


def test_a_body_far_beyond_the_limit_ends_the_connection() -> None:
    """A body far beyond the limit ends the connection."""
    answer = refusal(*[bytes(10_000_000)] * 11, whole=False).response
    assert (answer.status, answer.headers) == (400, ((b"connection", b"close"),))


def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent() -> None:
    """The client gets the answer without a `100 Continue`, which reading the body would send."""
    assert code(whole=False, expect="100-continue", content_length="1001") == "payload_too_large"


def test_a_client_that_disconnects_gets_no_answer() -> None:
    """The request is incomplete, so no part of it counts."""

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        await read_body(scope(), receive, LIMIT)

    with pytest.raises(DisconnectedError):
        asyncio.run(run())


def test_a_header_sent_several_times_is_one_list() -> None:
    """HTTP joins the values of equal headers."""
    request = {"headers": [(b"x-forwarded-for", b"192.0.2.1"), (b"host", b"h"), (b"x-forwarded-for", b"10.0.0.1")]}
    assert header(request, b"x-forwarded-for") == b"192.0.2.1, 10.0.0.1"
    assert header(request, b"host") == b"h"
    assert header(request, b"origin") == b""


def test_a_503_answer_has_a_retry_after_header() -> None:
    """Clients wait for that time before they try again."""
    answer = unavailable("Try again.").response
    assert (answer.status, answer.headers) == (503, ((b"retry-after", b"1"),))
