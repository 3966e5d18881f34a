"""One HTTP exchange: a request's body read within its limits, and an answer in the one form clients understand.

Every error is JSON with `success`, `code` and `message`: Segment's Python library fails on an error without a `code`
and then repeats for minutes what can never work.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = b"application/json"

# zlib's largest window, and that gzip's header and checksum are around the data.
_GZIP_WINDOW = zlib.MAX_WBITS | 16


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = JSON


SUCCESS = Answer(200, b'{"success": true}')


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        code: What a program goes by.
        message: What a person reads: what is wrong and what to do.
        headers: Further headers.
    """

    def __init__(self, status: int, code: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        body = msgspec.json.encode({"success": False, "code": code, "message": message})
        self.answer = Answer(status, body, headers)


class DisconnectedError(Exception):
    """The client has gone before its request was whole."""


def unavailable(message: str) -> RefusedError:
    """Return the error for what may pass in a moment."""
    return RefusedError(503, "unavailable", message, ((b"retry-after", b"1"),))


def header(scope: Scope, name: bytes) -> bytes:
    """Return a request's header, empty when it has none; `name` is in lower case."""
    for each, value in scope["headers"]:
        if each == name:
            return bytes(value)
    return b""


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """Read the body of a request, decompressed.

    Args:
        scope: The request.
        receive: Where its body comes from.
        limit: Bytes it may have, decompressed.
        seconds: How long the client may take to send it.

    Raises:
        RefusedError: It is too large, too slow, or compressed in a way that cannot be read.
        DisconnectedError: The client has gone.
    """
    message = await receive()
    if message.get("more_body"):
        try:
            async with asyncio.timeout(seconds):
                body = await _read_rest(message, receive, limit)
        except TimeoutError:
            raise RefusedError(
                408, "timeout", f"The body did not arrive within {seconds:g} seconds.", ((b"connection", b"close"),)
            ) from None
    elif message["type"] == "http.disconnect":
        raise DisconnectedError
    else:
        body = message["body"]
    if len(body) > limit:
        raise _too_large(limit)
    encoding = header(scope, b"content-encoding").lower()
    if not encoding or encoding == b"identity":
        return bytes(body)
    if encoding not in {b"gzip", b"x-gzip"}:
        raise RefusedError(400, "bad_request", "Content-Encoding must be gzip or none.")
    return _decompress(body, limit)


async def _read_rest(message: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
    parts = [message["body"]]
    size = len(parts[0])
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _decompress(body: bytes, limit: int) -> bytes:
    """Decompress a body, but no further than it may go: a few kilobytes can become gigabytes."""
    parts = []
    room = limit + 1
    try:
        while body:
            member = zlib.decompressobj(_GZIP_WINDOW)
            part = member.decompress(body, room)
            parts.append(part)
            room -= len(part)
            if room <= 0:
                raise _too_large(limit)
            if not member.eof:
                raise RefusedError(400, "bad_request", "The gzip data is cut short.")
            body = member.unused_data
    except zlib.error as error:
        raise RefusedError(400, "bad_request", f"The body is no gzip data: {error}.") from None
    return b"".join(parts)


def _too_large(limit: int) -> RefusedError:
    return RefusedError(
        400,
        "payload_too_large",
        f"Exceed payload limit: a request may have {limit:,} bytes, decompressed.",
        ((b"connection", b"close"),),
    )


async def send_answer(send: Send, answer: Answer, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send an answer.

    Args:
        send: Where it goes.
        answer: The answer.
        headers: Headers beside its own.
    """
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                (b"content-type", answer.content_type),
                (b"content-length", b"%d" % len(answer.body)),
                *answer.headers,
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": answer.body})
