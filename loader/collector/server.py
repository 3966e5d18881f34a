"""Runs the collector on a port, from its start to the last answer (`loader serve`).

The first SIGTERM or SIGINT stops the collector in order. The collector then accepts no new connections, answers every
request under way and exits with code 0. The second signal ends the process at once.
"""

import asyncio
import errno
import gc
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from queue import Queue

import structlog
import uvicorn
import uvloop

from loader.buffer.batch_writer import BatchWriter
from loader.buffer.spool import Spool, count_foreign
from loader.collector.app import Collector
from loader.collector.protocol import IDLE_SECONDS, HttpProtocol
from loader.collector.warehouse_metrics import WarehouseMetrics
from loader.collector.write_keys import WriteKeys
from loader.errors import SchemaBehindError, UsageError, without_values
from loader.postgres.reconnect import Connector
from loader.postgres.warehouse import Warehouse
from loader.runtime.signals import handle_signals
from loader.settings import Settings

# How long the requests under way may take after the signal to stop.
STOP_SECONDS = 30

# How long the start waits for the database before the collector accepts connections and writes to the spool.
_START_SECONDS = 5.0

_BACKLOG = 4096

# The threshold of the garbage collection. Reference counting frees nearly all objects of a request at once, so few
# reference cycles are left to collect.
_GARBAGE = 20_000

log = structlog.get_logger("loader")


class _Server(uvicorn.Server):
    """uvicorn's server with the handling of signals that the module's docstring describes."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        is_main = threading.current_thread() is threading.main_thread()
        with handle_signals(self._stop, self._end) if is_main else nullcontext():
            yield

    def _stop(self) -> None:
        self.should_exit = True

    def _end(self, number: int) -> None:
        os.write(2, b"Stopped at once; requests under way get no answer.\n")
        os._exit(128 + number)


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 picks a free port.

    Raises:
        UsageError: This machine has no such address, or the port is taken or not permitted.
    """
    other_host = "Choose another address with --host: 127.0.0.1 is for this machine alone, 0.0.0.0 for all networks."
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{host!r} is not an address to listen on: {_reason(error)}. {other_host}") from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            other = "Choose another port with --port; 0 picks a free port."
            raise UsageError(f"Cannot listen on {host} port {port}: {_reason(error)}. {other}") from None
        raise UsageError(f"This machine cannot listen on {host}: {_reason(error)}. {other_host}") from None
    return listening


def _reason(error: OSError | UnicodeError) -> str:
    return str(getattr(error, "strerror", None) or error)


def run_server(
    settings: Settings, listening: socket.socket, started: Callable[[uvicorn.Server], None] = lambda _: None
) -> None:
    """Run the collector until a signal, or the receiver of `started`, stops the server.

    Args:
        settings: The process's settings.
        listening: The socket to accept connections from.
        started: Called with the server before the server accepts connections. Setting the server's `should_exit` stops
            the server like a signal.

    Raises:
        LoaderError: The database answers, but the loader cannot use it.
    """
    _allow_connections()
    # The present objects live as long as the process. Scanning them for garbage would only delay requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE, 20, 100)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listening, started))


@contextmanager
def serve_in_thread(settings: Settings, port: int = 0) -> Iterator[str]:
    """Run a collector in a thread of this process for the length of a `with` block, on 127.0.0.1.

    Yields:
        The URL of the collector. The end of the block waits for the answers to all requests under way.

    Raises:
        LoaderError: The collector could not start.
    """
    servers: Queue[uvicorn.Server | None] = Queue()
    with bind("127.0.0.1", port) as listening, ThreadPoolExecutor(1, "loader-collector") as threads:
        running = threads.submit(run_server, settings, listening, servers.put)
        running.add_done_callback(lambda _: servers.put(None))
        if server := servers.get():
            try:
                yield _address(listening)
            finally:
                server.should_exit = True
        running.result()


async def _serve(settings: Settings, listening: socket.socket, started: Callable[[uvicorn.Server], None]) -> None:
    warehouse = Warehouse()
    connector = Connector(settings, warehouse)
    folder = settings.spool_folder
    keys = WriteKeys(connector, folder / "write_keys.json", warehouse)
    writer = BatchWriter(
        connector,
        Spool(folder, settings.spool_bytes // settings.processes, warehouse),
        warehouse,
        queue_bytes=settings.queue_bytes,
        commit_seconds=settings.commit_seconds,
    )
    await asyncio.to_thread(_check, connector)
    await asyncio.to_thread(keys.refresh)
    await writer.start()
    await writer.reached_database(_START_SECONDS)
    observation = WarehouseMetrics(connector, lambda: count_foreign(folder, warehouse.id))
    collector = Collector(settings, writer, keys, observation)
    refreshing = asyncio.create_task(collector.keep_keys_fresh())
    reporting = asyncio.create_task(collector.report_refusals())
    server = _Server(
        uvicorn.Config(
            collector,
            http=HttpProtocol,
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
        reporting.cancel()
        await writer.stop()
        collector.log_refusals()
        keys.close()
        observation.close()
        connector.close()
        log.info("collector has stopped", process=os.getpid())


def _check(connector: Connector) -> None:
    """Raise an error if the database answers but cannot be used; a database that is away only gives a warning."""
    try:
        connector().close()
    except (SchemaBehindError, UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - after any error, events wait in the spool
        log.warning(
            "the database is away; events go to the spool until the database is back", reason=without_values(error)
        )


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _allow_connections() -> None:
    """Raise the limit of open files, and so of connections, to the highest value that the system permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
