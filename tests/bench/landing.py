r"""Landing a file, against `psql \copy` of the same lines over one connection into a one-column jsonb table."""

import statistics
import time
from pathlib import Path

import psutil

from tests.bench.ground import Ground, median_ratio, report, seconds

_EVENTS = 2_000_000
_ROUNDS = 5


def rate(ground: Ground) -> None:
    """Compare rates, the two in turn, whole commands from start to end."""
    path = ground.events_file(_EVENTS)
    url = ground.create_database("bench_landing")
    ground.run_loader(url, "migrate")
    ground.run_loader(url, "source", "add", "Iterable")
    ground.psql(url, "-c", "create table lines (line jsonb)")
    # Quote and delimiter are bytes JSON cannot hold, so every line is one value.
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


def _peak(pid: int) -> int:
    """Return the largest peak of resident memory of a process and its children, in bytes, watching until it ends."""
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
