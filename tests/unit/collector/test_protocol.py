"""One client's connection: how the protocol keeps the body of a request that takes the fast path."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from loader.collector.http import SUCCESS
from loader.collector.protocol import HttpProtocol
from loader.collector.routes import Route, event_routes
from loader.settings import Settings

BODY = b'{"a":"b"}'
HEAD = b"POST /v1/track HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"


class Application:
    """An application whose fast path takes requests, or leaves them to a task."""

    request_seconds = 30.0

    def __init__(self, *, takes: bool) -> None:
        self.fast_path = self
        self.takes = takes
        self.taken: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.received = b""

    def find(self, *_: Any) -> Route:
        """Return a route."""
        return event_routes(Settings.model_construct())["/v1/track"]

    def take(self, *request: Any) -> bool:
        """Take a request, or leave the request to a task."""
        self.taken.put_nowait(request[2:])
        return self.takes

    async def __call__(self, _: Any, receive: Any, send: Any) -> None:
        """Answer a request that was left."""
        self.received = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def connected(application: Application) -> AsyncIterator[tuple[HttpProtocol, asyncio.StreamWriter, Any]]:
    """Open a connection, and yield its protocol and the client's streams."""
    config = Config(application, http=HttpProtocol, lifespan="off", log_config=None)
    config.load()
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    protocol = HttpProtocol(config, ServerState(), {}, loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    try:
        yield protocol, writer, reader
    finally:
        writer.close()
        transport.abort()
        await writer.wait_closed()


def test_a_body_is_not_kept_twice_while_its_events_wait() -> None:
    """The queue counts the bytes of the events, so the connection keeps no copy of the body."""

    async def request() -> None:
        application = Application(takes=True)
        async with connected(application) as (protocol, writer, reader):
            writer.write(HEAD + BODY)
            body, respond = await application.taken.get()
            assert (body, protocol.cycle.body) == (BODY, b"")
            respond(SUCCESS)
            assert await reader.readuntil(SUCCESS.body)

    asyncio.run(request())


@pytest.mark.parametrize("cut", [0, 5])
def test_a_request_that_the_fast_path_leaves_keeps_its_body(cut: int) -> None:
    """The application reads the whole body, whether the body arrives with the head or later."""

    async def request() -> None:
        application = Application(takes=False)
        async with connected(application) as (_, writer, reader):
            for part in (HEAD + BODY[:cut], BODY[cut:]):
                writer.write(part)
                await writer.drain()
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert application.received == BODY

    asyncio.run(request())
