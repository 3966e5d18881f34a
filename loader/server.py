"""`loader serve`: the collector on a port, from the first connection to the last answer.

The first SIGTERM or SIGINT stops it in order: no new connections, an answer to every request that is under way, exit
code 0. The second one ends it at once.
"""

import asyncio
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Queue
from types import FrameType

import httptools
import structlog
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from loader import metrics
from loader.collector import Collector
from loader.connector import Connector
from loader.errors import SchemaBehindError, UsageError
from loader.exchange import RefusedError
from loader.keys import WriteKeys
from loader.observation import Observation
from loader.settings import Settings
from loader.spool import Spool
from loader.writer import Writer

# How long a connection may stay open with nothing on it: longer than a load balancer's 60 s, so that it closes first.
IDLE_SECONDS = 75

# How long the requests under way may take once the server is to stop.
STOP_SECONDS = 30

# Of a request's head; no client has use for more.
HEAD_BYTES = 65_536

# How long a client may take to read why it was refused.
_LINGER_SECONDS = 2.0

# How long the first connections wait for the database before the spool serves them.
_START_SECONDS = 5.0

_BACKLOG = 4096

log = structlog.get_logger("loader")


class Connection(HttpToolsProtocol):
    """One client's connection: uvicorn's, with limits on what comes before a request is known.

    What is refused here is refused in its turn: requests that came before it on the connection get their answers first.
    """

    _reading_head = False
    _head_began = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _refusal: bytes | None = None

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
        if not self._asks_upgrade():
            self._stop_timer()
            super().on_message_complete()

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


class _Server(uvicorn.Server):
    """uvicorn's server, with signals as the module's docstring has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.should_exit:
            os.write(2, b"Stopped at once; what was under way is not answered.\n")
            os._exit(128 + sig)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """Open the port to listen on.

    Raises:
        UsageError: It cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {host} port {port}: {error.strerror}. Choose another with --port."
        ) from None
    return listening


def run_server(
    settings: Settings, listening: socket.socket, started: Callable[[uvicorn.Server], None] = lambda _: None
) -> None:
    """Answer requests until a signal ends it, or whoever `started` has told of the server.

    Args:
        settings: The process's settings.
        listening: The socket to accept connections from.
        started: Called with the server before it accepts connections; `should_exit` ends it as a signal does.

    Raises:
        LoaderError: The database is there, but will not do.
    """
    _allow_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listening, started))


@contextmanager
def running(settings: Settings, port: int = 0) -> Iterator[str]:
    """Run a collector on this machine, in a thread of this process, for the length of a block.

    Args:
        settings: The process's settings.
        port: The port to listen on; 0 picks a free one.

    Yields:
        Its URL. Every request under way is answered before the block is left.

    Raises:
        LoaderError: It could not start.
    """
    servers: Queue[uvicorn.Server | BaseException] = Queue()
    with bind("127.0.0.1", port) as listening:

        def run() -> None:
            try:
                run_server(settings, listening, servers.put)
            except BaseException as error:  # noqa: BLE001 - raised below, where somebody waits for it
                servers.put(error)

        thread = threading.Thread(target=run, name="loader-collector")
        thread.start()
        try:
            server = servers.get()
            if isinstance(server, BaseException):
                raise server
            try:
                yield _address(listening)
            finally:
                server.should_exit = True
        finally:
            thread.join()
    if not servers.empty() and isinstance(failed := servers.get(), BaseException):
        raise failed


async def _serve(settings: Settings, listening: socket.socket, started: Callable[[uvicorn.Server], None]) -> None:
    connector = Connector(settings)
    folder = settings.spool or settings.home / "spool"
    keys = WriteKeys(connector, folder / "write_keys.json")
    writer = Writer(
        connector,
        Spool(folder, settings.spool_bytes // settings.processes),
        queue_bytes=settings.queue_bytes,
        commit_seconds=settings.commit_seconds,
    )
    await asyncio.to_thread(_check, connector)
    await asyncio.to_thread(keys.refresh)
    await writer.start()
    await writer.reached_database(_START_SECONDS)
    observation = Observation(connector)
    collector = Collector(settings, writer, keys, observation)
    refreshing = asyncio.create_task(collector.keep_keys_fresh())
    server = _Server(
        uvicorn.Config(
            collector,
            http=Connection,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
    started(server)
    log.info("collector is ready", address=_address(listening), process=os.getpid())
    try:
        await server.serve(sockets=[listening])
    finally:
        refreshing.cancel()
        await writer.stop()
        keys.close()
        observation.close()
        connector.close()
        log.info("collector has stopped", process=os.getpid())


def _check(connector: Connector) -> None:
    """Refuse to start on a database that answers and will not do; one that is away is waited for."""
    try:
        connector().close()
    except (SchemaBehindError, UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever keeps it away, events can wait for it
        log.warning(
            "the database is away; events go to the spool until it is there", reason=" ".join(str(error).split())
        )


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _allow_connections() -> None:
    """Let this process have as many open connections as the system lets anybody have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
