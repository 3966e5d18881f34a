r"""Landing a file, compared with `psql \copy` of the same lines over one connection into a jsonb column."""

import statistics
import time
from pathlib import Path

import psutil

from loader.events.segment import parse_lines
from loader.files.chunks import LineReader
from loader.postgres.connection import connect
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from tests.bench.ground import Ground, median_ratio, report, seconds

_EVENTS = 2_000_000
_TRACKED = 100_000
_ROUNDS = 3
_TRACKING_ROUNDS = 9


def rate(ground: Ground) -> None:
    """Compare rates of whole commands from start to end, in turn."""
    path = ground.events_file(_EVENTS)
    url = ground.create_database("bench_landing")
    ground.run_loader(url, "migrate")
    ground.run_loader(url, "source", "add", "Iterable")
    ground.psql(url, "-c", "create table lines (line jsonb)")
    # JSON cannot contain these bytes as quote and delimiter, so every line is one value.
    copy = rf"\copy lines from '{path}' with (format csv, quote e'\x01', delimiter e'\x02')"
    pairs = []
    for round_ in range(_ROUNDS + 1):
        ground.psql(url, "-c", "truncate lines", "-c", "truncate raw.events, raw.loads", "-c", "checkpoint")
        baseline = seconds(lambda: ground.psql(url, "-c", copy))
        ground.psql(url, "-c", "truncate lines", "-c", "checkpoint")
        ours = seconds(lambda: ground.run_loader(url, "load", str(path)))
        if round_:  # the first warms the disk's cache and the tables' files
            pairs.append((_EVENTS / ours, _EVENTS / baseline))
    ours_rate = statistics.median(pair[0] for pair in pairs)
    baseline_rate = statistics.median(pair[1] for pair in pairs)
    report(
        "landing",
        f"{median_ratio(pairs):.2f} of psql \\copy's rate: {ours_rate:,.0f} against {baseline_rate:,.0f} events/s",
    )


def memory(ground: Ground) -> None:
    """Compare the peak memory of each process of `loader load` for a small and a large file."""
    peaks = {}
    for events in (10_000, _EVENTS):
        path = ground.events_file(events)
        url = ground.create_database("bench_memory")
        ground.run_loader(url, "migrate")
        ground.run_loader(url, "source", "add", "Iterable")
        process = ground.loader(url, "load", str(path))
        peaks[events] = _peak(process.pid)
        process.communicate()
    small, large = peaks[10_000], peaks[_EVENTS]
    report(
        "memory",
        f"{large / small:.2f} times the small file's: {large / 1e6:.0f} MB in the largest process for "
        f"{_EVENTS:,} events, {small / 1e6:.0f} MB for 10,000",
    )


def tracking(ground: Ground) -> None:
    """Compare landing with and without recording properties, in this process, in turn."""
    path = ground.events_file(_TRACKED)
    url = ground.create_database("bench_tracking")
    ground.run_loader(url, "migrate")
    with path.open("rb") as file:
        chunks = [chunk.data or b"" for chunk in LineReader(file, str(path), with_data=True).chunks()]
    registry = SchemaRegistry()
    pairs = []
    with connect(url, autocommit=True) as connection:

        def land_all(known: SchemaRegistry | None) -> tuple[float, float]:
            """Return the seconds of a landing, and the seconds in which this process worked."""
            connection.execute("truncate raw.events")
            connection.execute("checkpoint")
            start, work = time.perf_counter(), time.process_time()
            for data in chunks:
                if known:
                    with known.transaction(connection) as seen:
                        land(connection, "iterable", "file", parse_lines(data, 0), seen)
                else:
                    with connection.transaction():
                        land(connection, "iterable", "file", parse_lines(data, 0), None)
            return time.perf_counter() - start, time.process_time() - work

        for round_ in range(_TRACKING_ROUNDS + 1):
            # Each comes first in every other round, because the second finds the server's files warm.
            if round_ % 2:
                with_, without = land_all(registry), land_all(None)
            else:
                without, with_ = land_all(None), land_all(registry)
            if round_:
                pairs.append((with_, without))
    wall = statistics.median(with_[0] / without[0] for with_, without in pairs)
    cost = statistics.median((with_[1] - without[1]) / _TRACKED * 1e6 for with_, without in pairs)
    report("tracking", f"{wall:.3f} of the time without: {cost:.2f} µs of work more for each event")


def _peak(pid: int) -> int:
    """Return the largest resident memory of a process or a child, in bytes, checked until the process ends."""
    peak = 0
    root = psutil.Process(pid)
    while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for process in processes:
            peak = max(peak, _high_water(process.pid))
        time.sleep(0.05)
    return peak


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
