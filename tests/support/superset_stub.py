"""A server that answers as Superset does, for tests without a Superset."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOGIN, CSRF = "/api/v1/security/login", "/api/v1/security/csrf_token/"
TEST, IMPORT = "/api/v1/database/test_connection/", "/api/v1/assets/import/"
Answer = tuple[int, str]
GOOD: dict[str, Answer] = {
    LOGIN: (200, '{"access_token": "token"}'),
    CSRF: (200, '{"result": "csrf"}'),
    TEST: (200, '{"message": "OK"}'),
    IMPORT: (200, '{"message": "OK"}'),
}


class Stub(ThreadingHTTPServer):
    """A server with one answer for each path, which keeps its requests."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers a request as its server says."""

    server: Stub

    def do_GET(self) -> None:
        """Answer a request without a body."""
        self.do_POST()

    def do_POST(self) -> None:
        """Keep a request and answer it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, dict(self.headers), body))
        status, text = self.server.answers.get(self.path, (404, "<html>not found</html>"))
        self.send_response(status)
        if status == 301:
            self.send_header("Location", text)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Write no log."""


@contextmanager
def stub(**changed: Answer) -> Iterator[Stub]:
    """Serve good answers but for some paths, named by `login`, `csrf`, `test` and `upload`."""
    paths = {"login": LOGIN, "csrf": CSRF, "test": TEST, "upload": IMPORT}
    with Stub(GOOD | {paths[name]: answer for name, answer in changed.items()}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
