"""Keeps processes of the loader running: one that ends is started again, a signal ends them all in order.

The first SIGTERM or SIGINT is handed on to every process, which then finishes what it is doing; the second one kills
them. A process whose supervisor has died ends as if it had got the first.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

# Between a process's end and its next start; a process that has run for the longest pause begins anew.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

# Tells a process whose end is its own.
_SUPERVISOR = "LOADER_SUPERVISOR"

log = structlog.get_logger("loader")


@dataclass(frozen=True)
class Command:
    """A process to keep running.

    Attributes:
        name: What it is called in the log.
        arguments: What `loader` is started with.
        descriptors: Open files it inherits.
        environment: Variables beside this process's own.
    """

    name: str
    arguments: Sequence[str]
    descriptors: Sequence[int] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def supervise(commands: Sequence[Command], ended: Callable[[int], None] = lambda _: None) -> int:
    """Run processes until a signal comes.

    A process that ends with exit code 1 or 2 before it has run for a few seconds says that it cannot: then all end.

    Args:
        commands: The processes.
        ended: Called with the number of each process that has ended.

    Returns:
        The exit code: 0 when all have ended in order.
    """
    return asyncio.run(_Supervisor(ended).run(commands))


class _Supervisor:
    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._stopping = asyncio.Event()
        self._running: set[asyncio.subprocess.Process] = set()
        self._code = 0

    async def run(self, commands: Sequence[Command]) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        await asyncio.gather(*(self._keep(command) for command in commands))
        return self._code

    def _signalled(self) -> None:
        if self._stopping.is_set():
            self._code = 1
            self._send(signal.SIGKILL)
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, command: Command) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            started = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "loader",
                *command.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=command.descriptors,
                env=os.environ | command.environment | {_SUPERVISOR: str(os.getpid())},
                # Ctrl-C on a terminal is for the supervisor, which hands it on once.
                process_group=0,
            )
            self._running.add(process)
            if self._stopping.is_set():
                process.terminate()
            code = await process.wait()
            self._running.discard(process)
            self._ended(process.pid)
            ran = time.monotonic() - started
            if self._stopping.is_set():
                # One that SIGTERM itself has ended had not begun yet: there was nothing to finish.
                self._code = self._code or (1 if code not in {0, -signal.SIGTERM} else 0)
                return
            if code in {1, 2} and ran < _LONGEST_PAUSE and pause == _FIRST_PAUSE:
                log.error("a process cannot start; stopping the others", name=command.name, exit_code=code)
                self._code = code
                self._stop()
                return
            if ran > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            log.error("a process has ended and is started again", name=command.name, exit_code=code, pause=pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def follow_supervisor() -> None:
    """End this process in order when the one that supervises it is gone, kill -9 included."""
    supervisor = os.environ.pop(_SUPERVISOR, "")
    if not supervisor:
        return

    def watch() -> None:
        while os.getppid() == int(supervisor):
            time.sleep(0.5)  # no event tells of a parent's end everywhere
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="loader-follow", daemon=True).start()
