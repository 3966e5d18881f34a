"""A file of events into tables, compared with another tool that loads the same file into the same server."""

import subprocess
import sys
import venv
from functools import partial
from pathlib import Path

from tests.bench.ground import Ground, median_ratio, report, seconds

_EVENTS = 1_000_000
_ROUNDS = 1


def dlt(ground: Ground) -> None:
    """Compare a load and a first transform, processes included, with dlt's merge of the same file."""
    python = _install(ground.folder / "dlt", "dlt[postgres]")
    if python is None:
        report("dlt", "did not run: dlt could not be installed")
        return
    path = ground.events_file(_EVENTS)
    pairs = []
    for _ in range(_ROUNDS):
        url = ground.create_database("bench_peer")
        command = [str(python), str(Path(__file__).with_name("dlt_pipeline.py")), str(path), url]
        home = {"HOME": str(ground.folder), "DLT_TELEMETRY": "false", "RUNTIME__DLTHUB_TELEMETRY": "false"}
        peer = seconds(partial(subprocess.run, command, check=True, env=home, cwd=ground.folder))
        url = ground.create_database("bench_file")
        ground.run_loader(url, "migrate")
        ground.run_loader(url, "source", "add", "Iterable")
        ours = seconds(lambda url=url: (ground.run_loader(url, "load", str(path)), ground.run_loader(url, "transform")))
        pairs.append((peer, ours))
    report(
        "dlt",
        f"{median_ratio(pairs):.1f} times dlt's speed: {pairs[0][1]:.1f} s against {pairs[0][0]:.1f} s for "
        f"{_EVENTS:,} events from a file into their tables",
    )


def _install(folder: Path, requirement: str) -> Path | None:
    """Install a package into an environment of its own; return its Python, or None where it cannot be installed."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", requirement]
    done = subprocess.run(install, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)  # noqa: T201 - the reason for a benchmark that is left out
        return None
    return python
