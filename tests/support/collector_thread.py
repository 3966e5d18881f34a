"""A collector for tests: the real server on its own port, in a thread of this process."""

import http.client
import json
import select
import socket
import struct
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import psycopg
import structlog

from loader.collector.server import serve_in_thread
from loader.postgres.database import open_database
from loader.raw.sources import add_key, add_source
from loader.settings import Settings


@dataclass(frozen=True)
class Reply:
    """A response of the collector."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)


def assert_taken(reply: Reply) -> None:
    """Check that a request was accepted with Segment's answer."""
    assert (reply.status, reply.body) == (200, b'{"success": true}')
    assert reply.headers["content-type"] == "application/json"


def assert_refused(reply: Reply, status: int, code: str) -> None:
    """Check the form of an error."""
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/json"
    assert reply.json.keys() == {"success", "code", "message"}
    assert reply.json["success"] is False
    assert reply.json["code"] == code
    assert reply.json["message"]


class Line:
    """A connection to a collector, for requests that no library sends."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._answers = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send bytes; a collector that has refused the request may not read them."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def end(self) -> None:
        """Announce the end of the data."""
        self._socket.shutdown(socket.SHUT_WR)

    def reply(self, method: str = "POST") -> Reply:
        """Wait for the next response."""
        status_line = self._answers.readline()
        assert status_line.startswith(b"HTTP/1.1 "), status_line
        headers = {}
        while line := self._answers.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
        return Reply(int(status_line.split()[1]), self._answers.read(length), headers)

    def answered(self, more: bytes = b"") -> bool:
        """Return whether a response has come; send a little more while it has not."""
        if more:
            self.send(more)
        return bool(select.select([self._socket], [], [], 0)[0])

    def rest(self) -> bytes:
        """Wait for the end of the connection, and return the bytes before it."""
        with suppress(ConnectionResetError):
            return self._answers.read()
        return b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self) -> None:
        """Reset the connection, as a machine does that restarts."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._socket.close()


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
        """Send one request over a separate connection; `key` is sent as Segment's libraries do."""
        text = json.dumps(body) if isinstance(body, Mapping | list) else body
        data = text.encode() if isinstance(text, str) else text
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

    def line(self) -> Line:
        """Open a connection."""
        return Line(self.port)


@dataclass(frozen=True)
class Entrance:
    """A running collector, the keys of its two sources, and the received events."""

    collector: Collecting
    settings: Settings
    connection: psycopg.Connection
    key: str
    other_key: str

    def landed(self, column: str = "payload") -> list[Any]:
        """Return one column of the landed events, in their order."""
        return [row[0] for row in self.connection.execute(f"select {column} from raw.events order by seq")]

    def refused(self, column: str = "reason") -> list[Any]:
        """Return one column of the messages in quarantine, in their order."""
        return [row[0] for row in self.connection.execute(f"select {column} from raw.quarantine order by id")]

    def empty(self) -> None:
        """Delete the received events and messages."""
        self.connection.execute("delete from raw.events")
        self.connection.execute("delete from raw.quarantine")

    @contextmanager
    def with_settings(self, **changes: Any) -> Iterator[Collecting]:
        """Run another collector on the same database, with other settings."""
        with collecting(self.settings.model_copy(update=changes)) as collector:
            yield collector


@contextmanager
def opened_entrance(settings: Settings) -> Iterator[Entrance]:
    """Run a collector with the sources `iterable` and `second` until the end of the block."""
    with open_database(settings) as database, database.begin() as connection:
        key = add_key(connection, "Iterable")
        _, other_key = add_source(connection, "Second")
    with collecting(settings) as collector, psycopg.connect(settings.database_url, autocommit=True) as connection:
        yield Entrance(collector, settings, connection, key, other_key)


@contextmanager
def collecting(settings: Settings) -> Iterator[Collecting]:
    """Run a collector until the end of the block; every request under way is answered before the end.

    The collector logs to the output of this moment. A command that runs in this process replaces the output, and would
    get the lines of the collector into its own. Structlog's defaults replace the settings of an earlier command.
    """
    before = structlog.get_config()
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stdout))
    try:
        with serve_in_thread(settings) as url:
            yield Collecting(int(url.rsplit(":", 1)[1]))
    finally:
        structlog.configure(**before)
