"""One client's connection: uvicorn's protocol with limits on a request's head, and the fast path of small requests.

The fast path takes a request as soon as its last byte is there. One write answers the request when its events are
durable. The request needs no task, no ASGI messages and no await. uvicorn has no public hook for this, so the method
`_start_asgi_task` is overridden; pyproject.toml bounds uvicorn to the versions that were tested.
"""

import asyncio
import socket
from functools import partial
from typing import ClassVar

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from loader.collector.http import SUCCESS, HttpError, Response
from loader.collector.routes import Route
from loader.runtime import metrics

# How long a connection may stay open with nothing on it: longer than a load balancer's 60 s, so that it closes first.
IDLE_SECONDS = 75

# Of a request's head; no client has use for more.
HEAD_BYTES = 65_536

# How long a client may take to read why it was refused.
_LINGER_SECONDS = 2.0

# The end of a head that the fast path writes.
_HEAD_END = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One client's connection: uvicorn's, with limits on what comes before a request is known.

    What is refused here is refused in its turn: requests that came before it on the connection get their answers first.
    """

    _reading_head = False
    _head_began = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _refusal: bytes | None = None
    # The request that has a task of its own.
    _answering: RequestResponseCycle | None = None
    # The request under way that may take the fast path when it is whole.
    _short: tuple[RequestResponseCycle, Route] | None = None
    # The answers to a success by the headers of their routes, and the server's default headers that they have.
    _success: ClassVar[dict[object, bytes]] = {}
    _success_of: ClassVar[object] = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; the kernel finds out whether a silent client is still there."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        metrics.connections.inc()
        self._timer = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        # Also when it was reset, with a request under way that had left it running.
        self._unset_keepalive_if_required()
        metrics.connections.dec()
        if self._answering:
            # Its task must not write to a connection that is gone; uvicorn tells only the last request that came.
            self._answering.disconnected = True
            self._answering.message_event.set()
            self._answering = None
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has said all it has to say, then close; say whether there is something to answer."""
        cycle = self.cycle
        if self._refusal or self._reading_head or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Read on; a request's head must come within its time and size."""
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
            self._refuse(400, "bad_request", "What was sent is no HTTP request.")
        if not self._refusal:
            self._expect_rest(len(data))

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._reading_head = True
        self._head_began = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin its body."""
        if self._asks_upgrade():
            return
        self._reading_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request."""
        if self._asks_upgrade():
            return
        self._stop_timer()
        super().on_message_complete()
        if self._short and self._short[0] is self.cycle:
            self._take(*self._short)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Begin with a request, of which only the head may be there; a short one is taken when it is whole."""
        self._short = None
        fast_path = self.config.app.fast_path  # type: ignore[union-attr]
        # A client that does not read its answers waits for them to leave, which the fast path does not.
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
        """Take a whole request by the fast path, or else start its task."""
        self._short = None
        body = bytes(cycle.body)
        respond = partial(self._send, cycle, route)
        if not self.config.app.fast_path.take(route, cycle.scope, body, respond):  # type: ignore[union-attr]
            self._start_task(cycle, self.app)

    def _send(self, cycle: RequestResponseCycle, route: Route, response: Response) -> None:
        """Answer a request that took the fast path."""
        if cycle.response_complete or self.transport.is_closing():
            return
        if response is SUCCESS and cycle.keep_alive:
            self.transport.write(self._success_answer(route))
        else:
            self.transport.write(self._whole_answer(response, route, keep_alive=cycle.keep_alive))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _success_answer(self, route: Route) -> bytes:
        if HttpProtocol._success_of is not self.server_state.default_headers:
            HttpProtocol._success, HttpProtocol._success_of = {}, self.server_state.default_headers
        answer = HttpProtocol._success.get(route.headers)
        if answer is None:
            answer = HttpProtocol._success[route.headers] = self._whole_answer(SUCCESS, route, keep_alive=True)
        return answer

    def _whole_answer(self, response: Response, route: Route, *, keep_alive: bool) -> bytes:
        pieces = [STATUS_LINE[response.status]]
        for name, value in (*self.server_state.default_headers, *response.headers, *route.headers):
            pieces += (name, b": ", value, b"\r\n")
        if not keep_alive:
            pieces.append(b"connection: close\r\n")
        return b"".join([*pieces, _HEAD_END % len(response.body), response.body])

    def on_response_complete(self) -> None:
        """Go on with the next request, or with what is to be said of it."""
        was_last = not self.pipeline
        super().on_response_complete()
        if was_last and self._refusal:
            self._send_refusal()

    def _asks_upgrade(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _begin_without_upgrade(self, rest: bytes) -> None:
        """Read a request again as if it had not asked for another protocol.

        HTTP/1.1 is an answer to whoever asks, but the parser takes no body behind such a head.
        """
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] not in {b"connection", b"upgrade"}]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*head, b"", rest]))

    def _expect_rest(self, size: int) -> None:
        """Wait for what of a request is not there yet, after so many bytes more of something."""
        if not self._reading_head:
            if self._timer is None:
                if self.cycle.response_complete:
                    # What comes now belongs to no request, or to one that has its answer.
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
        """Wait for the rest of a request, but not for long."""
        seconds = self.config.app.request_seconds  # type: ignore[union-attr]
        message = f"The request's {what} did not arrive within {seconds:g} seconds."
        self._timer = self.loop.call_later(seconds, self._refuse, 408, "timeout", message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what is no request, once those before it have their answers, and close."""
        self._stop_timer()
        body = HttpError(status, code, message).response.body
        self._refusal = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
            STATUS_LINE[status],
            len(body),
            body,
        )
        metrics.count_request("other", status)
        cycle = self.cycle
        waiting = cycle is not None and not cycle.response_complete
        if waiting and cycle.more_body:
            # It is this request's body that cannot be read on.
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
        # Closed while something of it is still on its way, a connection takes the answer with it.
        self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
