"""A server that receives forwarded events, and behaves as a test tells it."""

import gzip
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request, decompressed."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Return the calls of the body: a batch, a list, or one call."""
        body = self.json
        if isinstance(body, list):
            return body
        calls: list[dict[str, Any]] = body.get("batch", [body])
        return calls

    @property
    def ids(self) -> list[str]:
        """Return the ids of the calls."""
        return [call["messageId"] for call in self.calls]


@dataclass(frozen=True)
class Respond:
    """An answer; `is_lost` ends the connection without it."""

    status: int = 200
    body: bytes = b'{"success": true}'
    headers: dict[str, str] = field(default_factory=dict)
    is_lost: bool = False


LOST = Respond(is_lost=True)

# A certificate for `localhost` that no authority has signed, with its key. It is valid until 2126.
UNTRUSTED = Path(__file__).with_name("untrusted.pem")
Behaviour = Callable[[Received], Respond]


class Receiver:
    """The server: `requests` has every request, `taken` the calls of those answered with success, in their order.

    Attributes:
        answer: Chooses the answer to a request. Calls of a lost answer count as taken, because the receiver has them.
    """

    def __init__(self, server: ThreadingHTTPServer, origin: str) -> None:
        self._server = server
        self._origin = origin
        self._lock = threading.Lock()
        self.requests: list[Received] = []
        self.taken: list[dict[str, Any]] = []
        self.answer: Behaviour = lambda _: Respond()

    @property
    def url(self) -> str:
        """Return the address."""
        return f"{self._origin}:{self._server.server_address[1]}"

    @property
    def taken_ids(self) -> list[str]:
        """Return the ids of the taken calls, repeats included."""
        return [call["messageId"] for call in self.taken]

    def receive(self, request: Received) -> Respond:
        """Record a request, and return its answer."""
        with self._lock:
            self.requests.append(request)
        # An answer may wait for another delivery, so requests are not answered under the lock.
        answer = self.answer(request)
        with self._lock:
            if 200 <= answer.status < 300 or answer.is_lost:
                self.taken += request.calls
        return answer


def in_turn(*answers: Respond) -> Behaviour:
    """Answer the first requests with some answers, and all others with success."""
    left = list(answers)
    return lambda _: left.pop(0) if left else Respond()


def refusing(is_bad: Callable[[dict[str, Any]], bool], status: int = 400) -> Behaviour:
    """Refuse every request that has a bad call."""
    return lambda request: Respond(status, b'{"message": "bad call"}') if any(map(is_bad, request.calls)) else Respond()


@contextmanager
def receiving(certificate: Path | None = None) -> Iterator[Receiver]:
    """Run a receiver until the end of the block, with encrypted connections if there is a certificate with its key."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body of an answer are two writes. With Nagle's algorithm, the second would wait for the client.
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = receiver.receive(Received(self.path, headers, body))
            if answer.is_lost:
                self.close_connection = True
                with suppress(OSError):
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                return
            with suppress(OSError):
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

        def handle(self) -> None:
            with suppress(OSError, ValueError):
                super().handle()

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        receiver = Receiver(server, "https://localhost" if certificate else "http://127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
