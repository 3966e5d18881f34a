"""One client's connection: uvicorn's, with limits on what comes before a request is known, and a short way for most.

The short way is for requests that are small, whole and in no way odd, which nearly all of a collector's are: they are
handed to the application as soon as their last byte is there, and answered with one write when their events are
durable, without the task, the messages and the awaiting that ASGI has for everything else.
"""

import asyncio
import socket

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from loader import metrics
from loader.exchange import Answer, RefusedError

# How long a connection may stay open with nothing on it: longer than a load balancer's 60 s, so that it closes first.
IDLE_SECONDS = 75

# Of a request's head; no client has use for more.
HEAD_BYTES = 65_536

# How long a client may take to read why it was refused.
_LINGER_SECONDS = 2.0

# What an answer of the short way has before its body.
_HEAD = b"content-type: application/json\r\naccess-control-allow-origin: *\r\ncontent-length: %d\r\n\r\n"


class Connection(HttpToolsProtocol):
    """One client's connection: uvicorn's, with limits on what comes before a request is known.

    What is refused here is refused in its turn: requests that came before it on the connection get their answers first.
    """

    _reading_head = False
    _head_began = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _refusal: bytes | None = None
    _short: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; the kernel finds out whether a silent client is still there."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        metrics.connections.inc()
        self._timer = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        metrics.connections.dec()
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
        if self._refusal:
            return
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
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, "head_too_large", f"The request's head may have {HEAD_BYTES:,} bytes.")

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
        if self._short is not None and self._short is self.cycle:
            self._short = None
            self._take(self.cycle)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Begin with a request, of which only the head may be there; a short one is taken when it is whole."""
        # A client that does not read its answers waits for them to leave, which the short way does not.
        if self.flow.write_paused or not self.config.app.takes(cycle.scope):  # type: ignore[union-attr]
            super()._start_asgi_task(cycle, app)
        elif cycle.more_body:
            self._short = cycle
        else:
            self._take(cycle)

    def _take(self, cycle: RequestResponseCycle) -> None:
        """Have a request answered without a task of its own, unless there is something odd about it."""

        def send(answer: Answer) -> None:
            if cycle.response_complete or self.transport.is_closing():
                return
            pieces = [STATUS_LINE[answer.status]]
            for name, value in (*self.server_state.default_headers, *answer.headers):
                pieces += (name, b": ", value, b"\r\n")
            if not cycle.keep_alive:
                pieces.append(b"connection: close\r\n")
            self.transport.write(b"".join([*pieces, _HEAD % len(answer.body), answer.body]))
            cycle.response_started = cycle.response_complete = True
            if not cycle.keep_alive:
                self.transport.close()
            self.on_response_complete()

        if not self.config.app.take(cycle.scope, bytes(cycle.body), send):  # type: ignore[union-attr]
            super()._start_asgi_task(cycle, self.app)

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

    def _expect(self, what: str) -> None:
        """Wait for the rest of a request, but not for long."""
        seconds = self.config.app.request_seconds  # type: ignore[union-attr]
        message = f"The request's {what} did not arrive within {seconds:g} seconds."
        self._timer = self.loop.call_later(seconds, self._refuse, 408, "timeout", message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what is no request, once those before it have their answers, and close."""
        self._stop_timer()
        body = RefusedError(status, code, message).answer.body
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
