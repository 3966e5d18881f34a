"""Reads the bodies of requests within their limits, and writes responses and errors in one form.

Every error is JSON with `success`, `code` and `message`. Segment's Python library fails on an error without a `code`,
and then repeats for minutes a request that can never succeed.
"""

import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = b"application/json"

# zlib's largest window, and the flag for data with gzip's header and checksum.
_GZIP_WINDOW = zlib.MAX_WBITS | 16

# Largest number of members in gzip data. Each member costs a copy of all data behind it, so thousands of empty members
# would keep the process busy for minutes.
_GZIP_MEMBERS = 64

# How much of a body that is too large is read and discarded. Most clients read the answer only after they have sent the
# whole body.
_READ_OVER_BYTES = 100_000_000


@dataclass(frozen=True)
class Response:
    """The response to a request: its status, body and headers."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = JSON


_CLOSE = ((b"connection", b"close"),)

SUCCESS = Response(200, b'{"success": true}')


class HttpError(Exception):
    """The error that a request is answered with.

    Args:
        status: The HTTP status.
        code: The code of the error, for programs.
        message: The cause of the error and the remedy, for people.
        headers: Further headers.
    """

    def __init__(self, status: int, code: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        body = msgspec.json.encode({"success": False, "code": code, "message": message})
        self.response = Response(status, body, headers)


class DisconnectedError(Exception):
    """The client has disconnected before its request was complete."""


def unavailable(message: str) -> HttpError:
    """Return the error for a condition that may pass soon: status 503, with `Retry-After` of 1 s."""
    return HttpError(503, "unavailable", message, ((b"retry-after", b"1"),))


def header(scope: Scope, name: bytes) -> bytes:
    """Return the value of a header, whose name is in lower case; empty if missing, joined by commas if repeated."""
    values = [value for each, value in scope["headers"] if each == name]
    return bytes(values[0]) if len(values) == 1 else b", ".join(values)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the body of a request and return the body decompressed.

    Args:
        scope: The request.
        receive: Returns the next ASGI message of the request.
        limit: Bytes that the decompressed body may have.

    Raises:
        HttpError: The body is too large, or cannot be decompressed.
        DisconnectedError: The client has disconnected.
    """
    headers = dict(scope["headers"])
    if b"expect" in headers and _announces_more(headers.get(b"content-length", b""), limit):
        # The client asks before it sends the body. So the refusal is sent without reading the body.
        raise _too_large(limit, _CLOSE)
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        part = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > _READ_OVER_BYTES:
            raise _too_large(limit, _CLOSE)
        else:
            parts.clear()
    if size > limit:
        raise _too_large(limit)
    return decode_body(scope, b"".join(parts), limit)


def decode_body(scope: Scope, body: bytes, limit: int) -> bytes:
    """Decompress a body by the `Content-Encoding` of its request, and return the result.

    Raises:
        HttpError: The body has more than `limit` bytes, or cannot be decompressed.
    """
    encoding = b""
    for name, value in scope["headers"]:
        if name == b"content-encoding":
            encoding = value.lower()
    if not encoding or encoding == b"identity":
        if len(body) > limit:
            raise _too_large(limit)
        return body
    if encoding not in {b"gzip", b"x-gzip"}:
        raise HttpError(400, "bad_request", "Content-Encoding must be gzip or none.")
    return _decompress(body, limit)


def _announces_more(length: bytes, limit: int) -> bool:
    """Return whether a Content-Length exceeds a limit; counts digits first, because `int` refuses very long numbers."""
    digits = length.strip().lstrip(b"0")
    return len(digits) > len(str(limit)) or (digits.isdigit() and int(digits) > limit)


def _decompress(body: bytes, limit: int) -> bytes:
    """Decompress a gzip body, and stop at the limit, because a few kilobytes can become gigabytes."""
    parts = []
    room = limit + 1
    members = 0
    try:
        while body:
            members += 1
            if members > _GZIP_MEMBERS:
                raise HttpError(400, "bad_request", f"The gzip data has more than {_GZIP_MEMBERS} members.")
            member = zlib.decompressobj(_GZIP_WINDOW)
            part = member.decompress(body, room)
            parts.append(part)
            room -= len(part)
            if room <= 0:
                raise _too_large(limit)
            if not member.eof:
                raise HttpError(400, "bad_request", "The gzip data is cut short.")
            body = member.unused_data
    except zlib.error as error:
        raise HttpError(400, "bad_request", f"The body is not gzip data: {error}.") from None
    return b"".join(parts)


def _too_large(limit: int, headers: tuple[tuple[bytes, bytes], ...] = ()) -> HttpError:
    return HttpError(
        400, "payload_too_large", f"Exceed payload limit: a request may have {limit:,} bytes, decompressed.", headers
    )


async def send_response(send: Send, answer: Response, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send a response to the client, with further headers."""
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
