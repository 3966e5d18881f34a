"""`loader serve` as a process that tests can kill and start again on the same port."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from loader.settings import Settings, variable_name
from tests.support.waiting import DEADLINE_SECONDS, wait_until


def free_port() -> int:
    """Return a port of this machine on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Serving:
    """A collector in separate processes.

    Args:
        settings: The settings of the collector.
        log: The file of its log.
        arguments: Further arguments of `loader serve`.
        names: The settings that differ from the default.
    """

    def __init__(self, settings: Settings, log: Path, *arguments: str, names: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self._arguments = arguments
        self._log = log
        self._environment = environment(settings, names)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the collector, and wait until it answers."""
        command = [sys.executable, "-m", "loader", "serve", f"--port={self.port}", *self._arguments]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        wait_until(self.is_ready, "the collector to answer")

    def is_ready(self) -> bool:
        """Return whether the collector accepts events, into the database or the spool."""
        assert self.process
        assert self.process.poll() is None, self._log.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/ready")
            with connection.getresponse() as response:
                return response.status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        assert self.process
        return self.process.wait(DEADLINE_SECONDS)

    def children(self) -> list[psutil.Process]:
        """Return the collector processes of the supervisor."""
        assert self.process
        with suppress(psutil.NoSuchProcess):
            return [each for each in psutil.Process(self.process.pid).children() if "serve" in each.cmdline()]
        return []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.process
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def environment(settings: Settings, names: tuple[str, ...]) -> Mapping[str, str]:
    """Return the environment of a process with some of the settings."""
    chosen: dict[str, Any] = {name: getattr(settings, name) for name in ("database_url", "home", *names)}
    return os.environ | {variable_name(name): str(value) for name, value in chosen.items() if value}


@contextmanager
def serving(settings: Settings, folder: Path, *arguments: str, names: tuple[str, ...] = ()) -> Iterator[Serving]:
    """Run `loader serve` until the end of the block, and stop it in order."""
    with Serving(settings, folder / "serve.log", *arguments, names=names) as running:
        yield running
