"""Reading a request's body within its limits, and the form of errors."""

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
    """Return data compressed, the same bytes whenever it is asked."""
    return gzip.compress(data, mtime=0)


def read(*parts: bytes, limit: int = LIMIT, whole: bool = True, **headers: str) -> bytes:
    """Return the body of a request that arrives in parts; after one that is not `whole` nothing is waited for."""

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
    """Return why a request is refused."""
    with pytest.raises(HttpError) as refused:
        read(*parts, **options)
    answer = json.loads(refused.value.response.body)
    assert answer["success"] is False
    assert answer["code"]
    assert answer["message"]
    return refused.value


def code(*parts: bytes, **options: Any) -> str:
    """Return the code with which a request is refused."""
    return str(json.loads(refusal(*parts, **options).response.body)["code"])


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    st.sampled_from(["", "identity", "gzip", "x-gzip", "GZIP"]),
)
def test_a_body_is_whole_however_it_arrives(parts: Sequence[bytes], encoding: str) -> None:
    """In parts of any size, compressed in as many members, or not at all."""
    headers = {"content_encoding": encoding} if encoding else {}
    sent = [packed(part) for part in parts] if "g" in encoding.lower() else parts
    assert read(*sent, **headers) == b"".join(parts)


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_compressed_body_may_arrive_cut_anywhere(cut: int) -> None:
    """Members know nothing of packets."""
    data = packed(b"first") + packed(b"second")
    assert read(data[:cut], data[cut:], content_encoding="gzip") == b"firstsecond"


def test_the_limit_is_met_exactly() -> None:
    """By the body as it came and by what it is decompressed."""
    full = b"x" * LIMIT
    assert read(full) == full
    assert read(packed(full), content_encoding="gzip") == full
    assert code(full + b"x") == "payload_too_large"
    assert code(full, b"x") == "payload_too_large"
    assert code(packed(full + b"x"), content_encoding="gzip") == "payload_too_large"
    assert code(packed(full) + packed(b"x"), content_encoding="gzip") == "payload_too_large"


def test_a_bomb_is_refused_before_it_has_gone_off() -> None:
    """A hundred megabytes in a hundred kilobytes cost no more memory than the limit."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(100)), packer.flush()])
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        assert code(bomb, limit=500_000, content_encoding="gzip") == "payload_too_large"
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_thousands_of_empty_members_are_refused() -> None:
    """Each is little work, all of them are not."""
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
def test_what_cannot_be_decompressed_is_refused(data: bytes, encoding: str) -> None:
    """Cut short, with something after it, damaged, not compressed, or compressed in another route."""
    refused = refusal(data, content_encoding=encoding)
    assert refused.response.status == 400
    assert json.loads(refused.response.body)["code"] == "bad_request"


def test_an_empty_body_is_empty() -> None:
    """Compressed or not."""
    assert read(b"") == read(b"", content_encoding="gzip") == b""


def test_a_large_body_is_read_to_its_end_and_thrown_away() -> None:
    """Most clients read the answer only when they have sent everything, so the connection can go on."""
    answer = refusal(*[b"x" * 600] * 5).response
    assert answer.status == 400
    assert answer.headers == ()


def test_a_body_without_end_is_not_read_to_its_end() -> None:
    """What is beyond all measure costs the connection."""
    answer = refusal(*[bytes(10_000_000)] * 11, whole=False).response
    assert (answer.status, answer.headers) == (400, ((b"connection", b"close"),))


def test_who_asks_before_sending_too_much_is_told_so() -> None:
    """Without being told to go on, which reading would do."""
    assert code(whole=False, expect="100-continue", content_length="1001") == "payload_too_large"


def test_a_client_that_goes_is_not_answered() -> None:
    """Its request was not whole, so nothing of it counts."""

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        await read_body(scope(), receive, LIMIT)

    with pytest.raises(DisconnectedError):
        asyncio.run(run())


def test_a_header_sent_several_times_is_one_list() -> None:
    """As HTTP has it."""
    request = {"headers": [(b"x-forwarded-for", b"192.0.2.1"), (b"host", b"h"), (b"x-forwarded-for", b"10.0.0.1")]}
    assert header(request, b"x-forwarded-for") == b"192.0.2.1, 10.0.0.1"
    assert header(request, b"host") == b"h"
    assert header(request, b"origin") == b""


def test_what_may_pass_in_a_moment_says_when() -> None:
    """Clients wait that long before they try again."""
    answer = unavailable("Try again.").response
    assert (answer.status, answer.headers) == (503, ((b"retry-after", b"1"),))
