"""The collector, compared with a server that only answers, and with landing a file."""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import psycopg

from tests.bench.ground import Ground, report, seconds
from tests.support.collector_process import free_port

_ROUNDS = 3
_SECONDS = 8
# Many short rounds, because other work makes the machine faster and slower for seconds.
_SINGLE_ROUNDS = 15
_SINGLE_SECONDS = 2
_WEBHOOK_ROUNDS = 5
_EVENTS = 20_000
_LOADED = 300_000
_ENDURANCE_SECONDS = 600

# The same server, protocol and event loop, with an application that reads the body and answers.
_NOTHING = """
import asyncio, sys, uvicorn, uvloop
from loader.collector.protocol import HttpProtocol
from loader.collector.server import bind

BODY = b'{"success": true}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"17")]

class Application:
    request_seconds = 30
    fast_path = None

    async def __call__(self, scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})

config = uvicorn.Config(
    Application(), http=HttpProtocol, ws="none", lifespan="off", access_log=False, log_config=None,
    server_header=False, proxy_headers=False,
)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(uvicorn.Server(config).serve(sockets=[bind("127.0.0.1", int(sys.argv[1]))]))
"""


# Without `proxy_http_version`, nginx opens a connection for each request.
_NGINX = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{collector};
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Request-Id $request_id;
        }}
    }}
}}
"""


def single(ground: Ground) -> None:
    """Compare single calls over 64 connections, each answered after its commit, with the other server, in turn."""
    events = ground.events_file(_EVENTS)
    with _nothing() as baseline, _collector(ground) as (port, _, key):
        pairs = []
        for round_ in range(_SINGLE_ROUNDS + 1):
            nothing = _load(baseline, events, key, batch=1, duration=_SINGLE_SECONDS)
            ours = _load(port, events, key, batch=1, duration=_SINGLE_SECONDS)
            if round_:  # the first makes the tables' files
                pairs.append((ours, nothing))
    ratio = statistics.median(ours["rate"] / nothing["rate"] for ours, nothing in pairs)
    later = statistics.median(ours["p99"] - nothing["p99"] for ours, nothing in pairs)
    ours_rate, nothing_rate = (statistics.median(pair[i]["rate"] for pair in pairs) for i in (0, 1))
    p50, p99 = (statistics.median(ours[name] for ours, _ in pairs) for name in ("p50", "p99"))
    report(
        "collecting one by one",
        f"{ratio:.2f} of the rate of a server that does nothing: {ours_rate:,.0f} against {nothing_rate:,.0f} "
        f"requests/s; p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, {later * 1e3:.1f} ms later than nothing's",
    )


def webhooks(ground: Ground) -> None:
    """Compare Iterable's webhooks with single calls, and both with `GET /health`, over 64 connections, in turn."""
    events = ground.events_file(_EVENTS)
    rounds = []
    with _collector(ground) as (port, _, key):
        for round_ in range(_WEBHOOK_ROUNDS + 1):
            rates = [
                _load(port, events, key, batch=1, duration=_SINGLE_SECONDS, kind=kind)["rate"]
                for kind in ("webhook", "track", "health")
            ]
            if round_:  # the first makes the tables' files
                rounds.append(rates)
    webhook, call, health = (statistics.median(rates[i] for rates in rounds) for i in range(3))
    to_call, to_health = (statistics.median(rates[i] / rates[i + 1] for rates in rounds) for i in range(2))
    report(
        "webhooks",
        f"{to_call:.2f} of the rate of single calls, which is {to_health:.2f} of that of GET /health: {webhook:,.0f}, "
        f"{call:,.0f} and {health:,.0f} requests/s",
    )


def batches(ground: Ground) -> None:
    """Compare batches of 100 with landing a file, as whole commands, in turn."""
    events = ground.events_file(_EVENTS)
    file = ground.events_file(_LOADED)
    pairs = []
    with _collector(ground) as (port, url, key):
        for round_ in range(_ROUNDS + 1):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("truncate raw.events, raw.loads")
                connection.execute("checkpoint")
            loaded = _LOADED / seconds(lambda: ground.run_loader(url, "load", str(file)))
            plain, gzipped = (
                _load(port, events, key, batch=100, connections=16, duration=_SECONDS, kind=kind)["rate"] * 100
                for kind in ("track", "gzip")
            )
            if round_:
                pairs.append((plain, gzipped, loaded))
    for name, number in (("collecting batches of 100", 0), ("the same with gzip", 1)):
        ratio = statistics.median(rates[number] / rates[2] for rates in pairs)
        sent, loaded = (statistics.median(rates[i] for rates in pairs) for i in (number, 2))
        report(name, f"{ratio:.2f} of the rate at which a file lands: {sent:,.0f} against {loaded:,.0f} events/s")


def proxied(ground: Ground) -> None:
    """Compare every kind of request through nginx with `GET /health` through nginx, over 64 connections, in turn.

    nginx opens a connection to the collector for each request, and adds `X-Forwarded-For` and `X-Request-Id`.
    """
    nginx = shutil.which("nginx")
    if nginx is None:
        report("through nginx", "not measured, because nginx is not installed")
        return
    events = ground.events_file(_EVENTS)
    kinds = {"single calls": ("track", 1), "webhooks": ("webhook", 1), "batches": ("track", 100), "gzip": ("gzip", 100)}
    rounds = []
    with _collector(ground) as (collector, _, key), _proxy(ground, nginx, collector) as port:
        for round_ in range(_ROUNDS + 1):
            rates = [
                _load(port, events, key, batch=batch, duration=_SINGLE_SECONDS, kind=kind)["rate"]
                for kind, batch in [*kinds.values(), ("health", 1)]
            ]
            if round_:  # the first makes the tables' files
                rounds.append(rates)
    health = statistics.median(rates[-1] for rates in rounds)
    for number, name in enumerate(kinds):
        ratio = statistics.median(rates[number] / rates[-1] for rates in rounds)
        rate = statistics.median(rates[number] for rates in rounds)
        report(
            f"{name} through nginx",
            f"{ratio:.2f} of the rate of GET /health: {rate:,.0f} against {health:,.0f} requests/s",
        )


def endurance(ground: Ground) -> None:
    """Compare the collector's memory after a minute of load with its memory after ten minutes."""
    events = ground.events_file(_EVENTS)
    with _collector(ground) as (port, url, key):
        collector = next(
            process
            for process in psutil.process_iter(["cmdline"])
            if "serve" in (process.info["cmdline"] or ()) and f"--port={port}" in process.info["cmdline"]
        )
        tenth = _ENDURANCE_SECONDS // 10
        sizes = []
        for _ in range(10):
            _load(port, events, key, batch=1, duration=tenth)
            sizes.append(collector.memory_info().rss)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("truncate raw.events")
    report(
        "collecting for ten minutes",
        f"{sizes[-1] / sizes[0]:.2f} times the memory after one minute: {sizes[-1] / 1e6:.0f} MB against "
        f"{sizes[0] / 1e6:.0f} MB",
    )


def freshness(ground: Ground) -> None:
    """Measure the time from the answer for an event posted to `loader up` until the event is in its table."""
    url, key = _database(ground)
    port = free_port()
    ages = []
    with _running(ground, url, "up", f"--port={port}"), psycopg.connect(url, autocommit=True) as connection:
        _wait_for(port)
        while connection.execute("select to_regclass('iterable.email_opened')").fetchone() == (None,):
            time.sleep(0.1)  # nothing reports that a table has been made
        for number in range(10):
            body = {"event": "Email Opened", "userId": "u", "messageId": f"fresh-{number}"}
            _post(port, key, body)
            posted = time.perf_counter()
            query = "select 1 from iterable.email_opened where id = %s"
            while connection.execute(query, (f"fresh-{number}",)).fetchone() is None:
                time.sleep(0.02)
            ages.append(time.perf_counter() - posted)
            # Events come at every moment of the pause between two runs.
            time.sleep(number * 0.37)
    report(
        "freshness",
        f"in its table {statistics.median(ages):.1f} s after the answer, {max(ages):.1f} s at most (of {len(ages)})",
    )


def _load(
    port: int, events: Path, key: str, *, batch: int, duration: float, connections: int = 64, kind: str = "track"
) -> dict[str, float]:
    arguments = [f"--port={port}", f"--events={events}", f"--key={key}", f"--batch={batch}", f"--kind={kind}"]
    arguments += [f"--seconds={duration}", f"--connections={connections}"]
    done = subprocess.run([sys.executable, "-m", "tests.bench.load", *arguments], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


@contextmanager
def _nothing() -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", _NOTHING, str(port)])
    try:
        _wait_for(port)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def _proxy(ground: Ground, nginx: str, collector: int) -> Iterator[int]:
    """Run nginx before a collector, as for TLS; yield its port."""
    folder = ground.folder / "nginx"
    folder.mkdir()
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=port, collector=collector))
    process = subprocess.Popen([nginx, "-e", str(folder / "error.log"), "-c", str(configuration)])
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _collector(ground: Ground) -> Iterator[tuple[int, str, str]]:
    """Yield a collector's port, its database and a write key."""
    url, key = _database(ground)
    port = free_port()
    with _running(ground, url, "serve", f"--port={port}"):
        _wait_for(port)
        yield port, url, key


def _database(ground: Ground) -> tuple[str, str]:
    url = ground.create_database("bench_collecting")
    ground.run_loader(url, "migrate")
    environment = os.environ | {"DATABASE_URL": url, "LOADER_HOME": str(ground.folder / "home")}
    made = subprocess.run(
        [sys.executable, "-m", "loader", "source", "add", "Iterable", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return url, str(json.loads(made.stdout)["write_key"])


@contextmanager
def _running(ground: Ground, url: str, *arguments: str) -> Iterator[None]:
    process = ground.loader(url, *arguments)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"loader {arguments[0]} failed: {errors.decode()[-2000:]}")


def _post(port: int, key: str, body: dict[str, str]) -> None:
    request = Request(f"http://127.0.0.1:{port}/v1/track", json.dumps(body).encode())
    request.add_header("Authorization", "Basic " + b64encode(f"{key}:".encode()).decode())
    with urlopen(request) as answer:  # noqa: S310 - our own collector
        answer.read()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing listens on port {port}") from None
            time.sleep(0.05)
        else:
            return
