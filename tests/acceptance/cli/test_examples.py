"""The examples of the help, run as typed, in the order of the help."""

import gzip
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from loader.cli.help import EXAMPLES
from loader.postgres.database import open_database
from loader.settings import Settings
from tests.conftest import loader_here, own_database
from tests.support.dbt_runs import run
from tests.support.folders import ROOT
from tests.support.small_project import small_package, used
from tests.support.waiting import DEADLINE_SECONDS, wait_until

__all__ = ["small_package"]

STAYING = {
    "up": "collector is ready",
    "serve": "collector is ready",
    "schedule": "at work",
    "forward run": "delivering",
}
# An example with one of these characters needs a shell.
OF_A_SHELL = set("$|<>;&*?~`#")
# A test of its own runs these, in its own database.
ELSEWHERE = {"bi superset", "demo", "forward dead show", "report"}


@pytest.fixture
def served(server: str, raw_template: str, small_package: Path, home: Path) -> Iterator[Settings]:
    """Return a database that the examples fill in turn; the tables of the small project exist."""
    home /= "examples"
    home.mkdir(exist_ok=True)
    with used(small_package, by_children=False), own_database(server, home, raw_template) as settings:
        with open_database(settings) as database:
            run(database, settings)
        yield settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files of the examples, and `loader` on the path of its shell."""
    path = tmp_path / "examples"
    path.mkdir()
    calls = [
        {"type": "track", "event": event, "userId": "u", "messageId": event}
        for event in ("Email Opened", "Order Placed")
    ]
    lines = "\n".join([*map(json.dumps, calls), "{broken", '{"type": "track"}']) + "\n"
    (path / "events.ndjson").write_text(lines, encoding="utf-8")
    (path / "events.ndjson.gz").write_bytes(gzip.compress(lines.encode()))
    (path / "mended.json").write_text(json.dumps(calls[0] | {"messageId": "mended"}), encoding="utf-8")
    (path / "exports").mkdir()
    for name in ("exports/emailSend.csv", "part-1.csv"):
        row = "2026-01-01 00:00:00 +00:00,ada@example.com,1,m\n"
        (path / name).write_text(f"createdAt,email,campaignId,messageId\n{row}", encoding="utf-8")
    (path / "bin").mkdir()
    command = path / "bin" / "loader"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m loader "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return path


def variables(settings: Settings, folder: Path, package: Path = ROOT) -> dict[str, str]:
    """Return the environment of a person in that folder."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    own = {"DATABASE_URL": settings.database_url, "LOADER_HOME": str(settings.home), "PATH": path}
    return dict(os.environ) | own | {"PYTHONPATH": str(package)}


@pytest.mark.parametrize("with_processes", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_d9_every_example_works_as_typed(
    served: Settings, folder: Path, small_package: Path, with_processes: bool
) -> None:
    """Each example ends with 0, or with 3 if it refuses messages on purpose.

    An example with special characters of a shell runs in a shell, and a permanent command in a process of its own. The
    others run in this process, without a start of Python.
    """
    run_here = loader_here(served)
    for path, examples in EXAMPLES.items():
        if path in ELSEWHERE:
            continue
        for example in examples:
            needs_shell = bool(OF_A_SHELL & set(example))
            is_permanent = path in STAYING and "--once" not in example
            if (needs_shell or is_permanent) and not with_processes:
                continue
            if is_permanent:
                run_until_ready(served, folder, small_package, example, STAYING[path])
                continue
            if needs_shell:
                done = subprocess.run(
                    ["sh", "-c", example],
                    cwd=folder,
                    env=variables(served, folder),
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=120,
                )
            else:
                program, *arguments = shlex.split(example)
                assert program == "loader"
                with chdir(folder):
                    done = run_here(*arguments)
            allowed = {0, 3} if path in {"load", "quarantine retry"} else {0}
            assert done.returncode in allowed, (example, done.stderr)
            assert "Traceback" not in done.stderr


def run_until_ready(settings: Settings, folder: Path, package: Path, example: str, ready: str) -> None:
    """Run a permanent command until it reports that it is ready, and stop it in order."""
    if not is_free(8080) and "--port" not in example and example.split()[1] in {"up", "serve"}:
        example += " --port 0"
    command = ["sh", "-c", f"exec {example}"]
    if not OF_A_SHELL & set(example):
        program, *arguments = shlex.split(example)
        assert program == "loader"
        command = [sys.executable, "-m", "loader", *arguments]
    log = folder / "log"
    with log.open("wb") as stream:
        own = variables(settings, folder, package if example.split()[1] in {"up", "schedule"} else ROOT)
        process = subprocess.Popen(command, cwd=folder, env=own, stderr=stream)
    try:
        wait_until(lambda: ready in log.read_text() or process.poll() is not None, example)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def is_free(port: int) -> bool:
    """Return whether no process on this machine listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
