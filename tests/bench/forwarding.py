"""Benchmarks of destinations: events a second in order, landing and transform beside a delivery, and memory."""

import http.server
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event as Signal
from typing import Any

import psutil
import psycopg

from loader.raw.destinations import add_destination
from tests.bench.ground import Ground, report, seconds

_EVENTS = 100_000
_ROUNDS = 3
_KEY = "BENCH_DESTINATION_KEY"


def forward(ground: Ground) -> None:
    """Measure a `segment` destination that answers at once, the cost for landing and transform, and the memory."""
    os.environ[_KEY] = "key"
    file = ground.events_file(_EVENTS, seed=7)
    url = ground.create_database("forward")
    ground.run_loader(url, "migrate")
    ground.run_loader(url, "source", "add", "Iterable")
    ground.run_loader(url, "load", str(file))
    ground.run_loader(url, "transform")
    with _answering() as address, psycopg.connect(url, autocommit=True) as connection:
        add_destination(connection, "fast", "segment", {"url": address, "key": f"env:{_KEY}"}, {}, from_start=True)
        spent = seconds(lambda: ground.run_loader(url, "forward", "run", "--once"))
        start = seconds(lambda: ground.run_loader(url, "forward", "run", "--once"))
        assert connection.execute("select sum(delivered) from raw.delivery_cursors").fetchone() == (_EVENTS,)
        report("forward", f"{_EVENTS / (spent - start):,.0f} events/s in order to a receiver that answers at once")
        connection.execute("delete from raw.destinations")
        _beside(ground, url, connection, address)
        _memory(ground, url, connection)


def _beside(ground: Ground, url: str, connection: psycopg.Connection, address: str) -> None:
    """Compare landing and transform with and without a live delivery, in turn."""
    spent: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * _ROUNDS):
        is_delivering = number % 2 == 1
        file = ground.events_file(_EVENTS // 4, seed=100 + number)
        worker = None
        if is_delivering:
            settings = {"url": address, "key": f"env:{_KEY}"}
            add_destination(connection, "live", "segment", settings, {}, from_start=False)
            worker = ground.loader(url, "forward")
        spent[is_delivering].append(
            seconds(lambda path=file: (ground.run_loader(url, "load", str(path)), ground.run_loader(url, "transform")))
        )
        if worker:
            worker.terminate()
            worker.communicate()
            connection.execute("delete from raw.destinations")
    ratio = statistics.median(spent[True]) / statistics.median(spent[False]) - 1
    report("forward beside landing", f"{ratio:+.1%} for landing and transform of {_EVENTS // 4:,} events")


def _memory(ground: Ground, url: str, connection: psycopg.Connection) -> None:
    """Report the memory of a worker whose receiver is dead, with a short and a long queue."""
    add_destination(connection, "dead", "webhook", {"url": "http://127.0.0.1:9"}, {}, from_start=True)
    worker = ground.loader(url, "forward")
    try:
        time.sleep(5)
        sizes = [psutil.Process(worker.pid).memory_info().rss]
        ground.run_loader(url, "load", str(ground.events_file(_EVENTS, seed=500)))
        ground.run_loader(url, "transform")
        time.sleep(5)
        sizes.append(psutil.Process(worker.pid).memory_info().rss)
    finally:
        worker.terminate()
        worker.communicate()
    shown = " and ".join(f"{size / 1e6:.0f} MB" for size in sizes)
    report("forward to a dead receiver", f"{shown}, before and after {_EVENTS:,} further events")


@contextmanager
def _answering() -> Iterator[str]:
    """Run a receiver that answers at once, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ready: Any = context.Queue()
    stop = context.Event()
    process = context.Process(target=_serve, args=(ready, stop))
    process.start()
    try:
        yield f"http://127.0.0.1:{ready.get()}"
    finally:
        stop.set()
        process.join()


def _serve(ready: Any, stop: Signal) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"success":true}')

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ready.put(server.server_address[1])
        stop.wait()
        server.shutdown()
