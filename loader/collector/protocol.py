"""One client's HTTP connection: uvicorn's protocol with limits on a request's head, and the fast path.

The fast path takes a small request as soon as its last byte has arrived. One write answers the request when its events
are durable. The request needs no task, no ASGI messages and no await.

uvicorn has no public hook for the fast path, so the method `_start_asgi_task` is overridden. pyproject.toml bounds
uvicorn to the versions that were tested.
"""

import asyncio
import socket
from collections.abc import Iterable
from functools import partial
from typing import ClassVar

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from loader.collector.http import SUCCESS, HttpError, Response
from loader.collector.routes import Route
from loader.runtime import metrics

# How long a connection may stay open without a request. A load balancer closes its idle connections after 60 s. This
# time is longer, so the load balancer closes first.
IDLE_SECONDS = 75

# Largest size of a request's head. No client needs a larger head.
HEAD_BYTES = 65_536

# How long a client may take to read a refusal before the connection is closed.
_LINGER_SECONDS = 2.0

# The last lines of a response's head on the fast path.
_HEAD_END = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One client's connection: uvicorn's protocol with limits on a request's head, and the fast path.

    A refusal keeps its turn: earlier requests on the connection get their answers first.
    """

    _reading_head = False
    _head_began = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _refusal: bytes | None = None
    # The request that has a task of its own.
    _answering: RequestResponseCycle | None = None
    # The request that takes the fast path when its body is complete, with its route.
    _short: tuple[RequestResponseCycle, Route] | None = None
    # The prepared answers to a success, by the headers of the route, and the server's default headers in those answers.
    _success: ClassVar[dict[object, bytes]] = {}
    _success_of: ClassVar[object] = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start a connection with TCP keepalive, so that the kernel detects a client that has vanished."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        metrics.connections.inc()
        self._timer = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the connection has ended, and tell the task of a request under way."""
        self._stop_timer()
        # uvicorn's keep-alive timer may still run if the connection was reset while a request was under way.
        self._unset_keepalive_if_required()
        metrics.connections.dec()
        if self._answering:
            # The request's task must not write to a lost connection. uvicorn informs only the last request.
            self._answering.disconnected = True
            self._answering.message_event.set()
            self._answering = None
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Handle the end of a client's data; return whether the connection stays open for an answer."""
        cycle = self.cycle
        if self._refusal or self._reading_head or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, and enforce the limits on the time and the size of a request's head."""
        if self._refusal:
            return
        self._head_began = False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._begin_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(400, "bad_request", "The bytes received are not an HTTP request.")
        if not self._refusal:
            self._expect_rest(len(data))

    def on_message_begin(self) -> None:
        """Start to read a request's head."""
        self._reading_head = True
        self._head_began = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request and the reading of its body, unless the request asks for another protocol."""
        if self._asks_upgrade():
            return
        self._reading_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Finish reading a request; a request that waits for its body takes the fast path now."""
        if self._asks_upgrade():
            return
        self._stop_timer()
        super().on_message_complete()
        if self._short and self._short[0] is self.cycle:
            self._take(*self._short)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Choose between the fast path and a task for a request whose head is there; its body may still arrive."""
        self._short = None
        fast_path = self.config.app.fast_path  # type: ignore[union-attr]
        # While a client does not read its answers, a task waits for the client. The fast path cannot wait, so a task
        # serves such a client.
        route = fast_path.find(cycle.scope) if fast_path and not self.flow.write_paused else None
        if route is None:
            self._start_task(cycle, app)
        elif cycle.more_body:
            self._short = cycle, route
        else:
            self._take(cycle, route)

    def _start_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _take(self, cycle: RequestResponseCycle, route: Route) -> None:
        """Serve a complete request by the fast path; start a task if the fast path does not take the request."""
        self._short = None
        body = bytes(cycle.body)
        respond = partial(self._send, cycle, route)
        if self.config.app.fast_path.take(route, cycle.scope, body, respond):  # type: ignore[union-attr]
            # The queue counts the bytes of the events. A second copy of the body would be memory that nothing counts.
            cycle.body.clear()
        else:
            self._start_task(cycle, self.app)

    def _send(self, cycle: RequestResponseCycle, route: Route, response: Response) -> None:
        """Answer a request that took the fast path."""
        if cycle.response_complete or self.transport.is_closing():
            return
        if response is SUCCESS and cycle.keep_alive:
            self.transport.write(self._success_answer(route))
        else:
            self.transport.write(self._encode(response, route.headers, keep_alive=cycle.keep_alive))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _success_answer(self, route: Route) -> bytes:
        if HttpProtocol._success_of is not self.server_state.default_headers:
            HttpProtocol._success, HttpProtocol._success_of = {}, self.server_state.default_headers
        answer = HttpProtocol._success.get(route.headers)
        if answer is None:
            answer = HttpProtocol._success[route.headers] = self._encode(SUCCESS, route.headers, keep_alive=True)
        return answer

    def _encode(self, response: Response, headers: Iterable[tuple[bytes, bytes]] = (), *, keep_alive: bool) -> bytes:
        pieces = [STATUS_LINE[response.status]]
        for name, value in (*self.server_state.default_headers, *response.headers, *headers):
            pieces += (name, b": ", value, b"\r\n")
        if not keep_alive:
            pieces.append(b"connection: close\r\n")
        return b"".join([*pieces, _HEAD_END % len(response.body), response.body])

    def on_response_complete(self) -> None:
        """Start the next request of the connection, or send the refusal that waits for its turn."""
        was_last = not self.pipeline
        super().on_response_complete()
        if was_last and self._refusal:
            self._send_refusal()

    def _asks_upgrade(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _begin_without_upgrade(self, rest: bytes) -> None:
        """Parse a request again without its request for another protocol.

        A server may answer such a request in HTTP/1.1. The parser reads no body after such a head, so `rest` has the
        bytes after the head.
        """
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] not in {b"connection", b"upgrade"}]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*head, b"", rest]))

    def _expect_rest(self, size: int) -> None:
        """Set the time limit for the missing rest of a request, and check the size of its head.

        Args:
            size: The number of bytes that have just arrived.
        """
        if not self._reading_head:
            if self._timer is None:
                if self.cycle.response_complete:
                    # The bytes belong to no request, or to a request that has its answer.
                    self._timer = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)
                elif self.cycle.more_body:
                    self._expect("body")
        elif self._head_began:
            self._stop_timer()
            self._expect("head")
        else:
            self._head_bytes += size
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, "head_too_large", f"The request's head may have {HEAD_BYTES:,} bytes.")

    def _expect(self, what: str) -> None:
        """Refuse the request unless the missing part, which the message names, arrives in time."""
        seconds = self.config.app.request_seconds  # type: ignore[union-attr]
        message = f"The request's {what} did not arrive within {seconds:g} seconds."
        self._timer = self.loop.call_later(seconds, self._refuse, 408, "timeout", message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Refuse a request that cannot be read, after the answers to earlier requests, and close the connection."""
        self._stop_timer()
        self._refusal = self._encode(HttpError(status, code, message).response, keep_alive=False)
        metrics.count_request("other", status)
        cycle = self.cycle
        waiting = cycle is not None and not cycle.response_complete
        if waiting and cycle.more_body:
            # The rest of this request's body cannot be read.
            cycle.disconnected = True
            cycle.message_event.set()
            waiting = bool(self.pipeline)
            if waiting:
                self.pipeline.popleft()
        if not waiting:
            self._send_refusal()

    def _send_refusal(self) -> None:
        if self._refusal is None or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.transport.write(self._refusal)
        # Only the sending side is closed now. Closing the connection while the rest of the request still arrives would
        # also discard the answer.
        self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
