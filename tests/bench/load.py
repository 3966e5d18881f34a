"""A load generator: keep-alive connections, each of which sends its next request after the last answer.

The generator runs as a separate process (`python -m tests.bench.load`), so it shares no thread with the measured
program.
"""

import argparse
import asyncio
import gzip
import json
import time
from base64 import b64encode
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import cast

import uvloop

from loader.events.iterable_types import SEGMENT_EVENTS

_HEAD_END = b"\r\n\r\n"

_REQUEST_ID = b"X-Request-Id: %016x\r\n"

# The end of an event, which completes its id.
_ID = b'%016x"}'
_ID_BYTES = len(_ID % 0)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(
        self, requests: Iterator[bytes], done: asyncio.Event, latencies: list[float], errors: list[bytes]
    ) -> None:
        self._requests = requests
        self._done = done
        self._latencies = latencies
        self._errors = errors
        self._buffer = b""
        self._answer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Send the next request when an answer is complete."""
        if self._buffer:
            data = self._buffer + data
        # Nearly every answer equals the previous answer.
        if data != self._answer:
            end = data.find(_HEAD_END)
            at = data.lower().find(b"content-length: ") + 16
            if end < 0 or len(data) < end + 4 + int(data[at : data.find(b"\r", at)]):
                self._buffer = data
                return
            self._answer = data
            if not data.startswith(b"HTTP/1.1 200"):
                self._errors.append(data[:200])
        self._buffer = b""
        self._latencies.append(time.perf_counter() - self._sent)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count an error if this side did not close the connection."""
        if not self._done.is_set():
            self._errors.append(f"connection lost: {exc}".encode())

    def _send(self) -> None:
        assert self._transport is not None
        if self._done.is_set():
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))


def requests_of(events: Path, key: str, batch: int, kind: str = "track") -> Iterator[bytes]:
    """Yield endless requests with events of a file, each with its own ids and request id.

    Parts of the requests are prepared, because the load generator and the server share the cores.

    Args:
        events: A file of tracking calls, a line each; a webhook has Iterable's body for the same event.
        key: A write key.
        batch: The number of events in a request.
        kind: `track` for the tracking API, plain or `gzip`; `webhook` for Iterable's; `health` for `GET /health`.
    """
    path = {"webhook": b"/webhooks/iterable", "health": b"/health"}.get(
        kind, b"/v1/track" if batch == 1 else b"/v1/batch"
    )
    # As behind a proxy, all heads differ.
    head = b"%b %b HTTP/1.1\r\nHost: bench\r\nAuthorization: Basic %b\r\nContent-Type: application/json\r\n%b" % (
        b"GET" if kind == "health" else b"POST",
        path,
        b64encode(f"{key}:".encode()),
        b"Content-Encoding: gzip\r\n" if kind == "gzip" else b"",
    )
    number = time.time_ns()
    if kind == "health":
        while True:
            number += 1
            yield head + _REQUEST_ID % number + b"\r\n"
    if kind == "webhook":
        bodies = [_webhook_of(line) for line in events.read_bytes().splitlines()]
        for before, after in cycle(bodies):
            number += 1
            length = len(before) + 16 + len(after)
            yield head + _REQUEST_ID % number + b"Content-Length: %d\r\n\r\n%b%016x%b" % (length, before, number, after)
    # The last of two fields with one name counts.
    lines = [line[:-1] + b',"messageId":"bench-' for line in events.read_bytes().splitlines()]
    if batch == 1:
        begun = [b"Content-Length: %d\r\n\r\n%b" % (len(line) + _ID_BYTES, line) for line in lines]
        for request in cycle(begun):
            number += 1
            yield b"%b%b%b%b" % (head, _REQUEST_ID % number, request, _ID % number)
    rest = cycle(lines)
    while True:
        items = [line + _ID % (number + index) for index, line in enumerate(islice(rest, batch))]
        number += batch
        body = b'{"batch":[' + b",".join(items) + b"]}"
        if kind == "gzip":
            body = gzip.compress(body, 1)
        yield head + _REQUEST_ID % number + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def _webhook_of(line: bytes) -> tuple[bytes, bytes]:
    """Return the body of Iterable for a call, in two parts around its message id."""
    call = json.loads(line)
    kind = next((kind for kind, event in SEGMENT_EVENTS.items() if event == call["event"]), call["event"])
    fields = call["properties"] | {"messageId": "<id>", "createdAt": "2026-03-04 05:06:07 +00:00"}
    body = json.dumps({"email": "a@example.com", "userId": call.get("userId"), "eventName": kind, "dataFields": fields})
    before, after = body.split("<id>")
    return before.encode(), after.encode()


async def run(port: int, requests: Iterator[bytes], connections: int, seconds: float) -> dict[str, float]:
    """Send requests for some seconds; return rate and latencies."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    latencies: list[float] = []
    errors: list[bytes] = []
    for _ in range(connections):
        await loop.create_connection(lambda: Client(requests, done, latencies, errors), "127.0.0.1", port)
    # The first second is not measured.
    await asyncio.sleep(1)
    latencies.clear()
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - started
    done.set()
    if errors:
        raise SystemExit(f"{len(errors)} requests failed, the first: {errors[0]!r}")
    ordered = sorted(latencies)
    return {
        "rate": len(ordered) / took,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[int(len(ordered) * 0.99)],
    }


def main() -> None:
    """Run from the command line and print the result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--kind", choices=["track", "gzip", "webhook", "health"], default="track")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    requests = requests_of(options.events, options.key, options.batch, options.kind)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(run(options.port, requests, options.connections, options.seconds))
    print(json.dumps(result))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
