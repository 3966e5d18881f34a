"""A collector for tests: the real server on a port of its own, in a thread of this process."""

import http.client
import json
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from loader.server import bind, run_server
from loader.settings import Settings


@dataclass(frozen=True)
class Reply:
    """What the collector answered."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Collecting:
    """A running collector."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(
        self,
        method: str,
        path: str,
        body: bytes | str | Mapping[str, Any] | list[Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request over a connection of its own; `key` is shown as Segment's libraries do."""
        data = json.dumps(body).encode() if isinstance(body, Mapping | list) else body
        shown = {"Content-Type": "application/json"} if data is not None else {}
        if key is not None:
            shown["Authorization"] = "Basic " + b64encode(f"{key}:".encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, data, shown | dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
        finally:
            connection.close()

    def post(self, path: str, body: Any, **options: Any) -> Reply:
        """Send a POST."""
        return self.send("POST", path, body, **options)

    def get(self, path: str) -> Reply:
        """Send a GET."""
        return self.send("GET", path)


@contextmanager
def collecting(settings: Settings) -> Iterator[Collecting]:
    """Run a collector until the end of the block; every request under way is answered before it ends."""
    listening = bind("127.0.0.1", 0)
    ready = threading.Event()
    servers: list[uvicorn.Server] = []
    errors: list[BaseException] = []

    def started(server: uvicorn.Server) -> None:
        servers.append(server)
        ready.set()

    def run() -> None:
        try:
            run_server(settings, listening, started)
        except BaseException as error:  # noqa: BLE001 - told below, by the thread that can fail the test
            errors.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="collector")
    thread.start()
    try:
        assert ready.wait(30)
        if errors:
            raise errors[0]
        yield Collecting(listening.getsockname()[1])
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(60)
        listening.close()
    assert not thread.is_alive()
    if errors:
        raise errors[0]
