"""Keeps child processes of `loader` running: restarts each that ends, and stops all of them at a signal.

The first SIGTERM or SIGINT is passed on to every process, which finishes its work in progress. The second signal kills
all processes. A process whose supervisor is gone stops as after a first signal.
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

from loader.runtime.backoff import Backoff
from loader.runtime.signals import handle_signals

# Seconds between a process's end and its next start. A process that ran for the longest pause starts with the first.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

# Seconds between two looks whether a process has work.
_LOOK_SECONDS = 3.0

# Environment variable with the process id of the supervisor.
_SUPERVISOR = "LOADER_SUPERVISOR"

log = structlog.get_logger("loader")


@dataclass(frozen=True)
class Command:
    """A process to keep running.

    Attributes:
        name: The name of the process in the log.
        arguments: The arguments of `loader`.
        descriptors: Open files that the process inherits.
        environment: Variables added to the environment of this process.
        is_wanted: Returns whether the process has work; the process starts when it has. None starts it at once.
    """

    name: str
    arguments: Sequence[str]
    descriptors: Sequence[int] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    is_wanted: Callable[[], bool] | None = None


def supervise(commands: Sequence[Command], ended: Callable[[int], None] = lambda _: None) -> int:
    """Run processes until a signal arrives.

    Exit code 1 or 2 within the first 30 seconds means that a process cannot start. All processes are stopped then.

    Args:
        commands: The processes.
        ended: Called with the process id of each process that has ended.

    Returns:
        The exit code: 0 when all processes stopped in order.
    """
    return asyncio.run(_Supervisor(ended).run(commands))


class _Supervisor:
    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._stopping = asyncio.Event()
        self._running: set[asyncio.subprocess.Process] = set()
        self._code = 0

    async def run(self, commands: Sequence[Command]) -> int:
        call = asyncio.get_running_loop().call_soon_threadsafe
        with handle_signals(lambda: call(self._stop), lambda _: call(self._kill)):
            await asyncio.gather(*(self._keep_running(command) for command in commands))
        return self._code

    def _stop(self) -> None:
        self._stopping.set()
        self._send(signal.SIGTERM)

    def _kill(self) -> None:
        self._code = 1
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep_running(self, command: Command) -> None:
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while command.is_wanted and not self._stopping.is_set() and not await asyncio.to_thread(command.is_wanted):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK_SECONDS)
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
                # Ctrl-C on a terminal reaches the supervisor only, which passes it on once.
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
                # SIGTERM itself ends only a process that has not begun its work. Nothing was left to finish.
                self._code = self._code or (1 if code not in {0, -signal.SIGTERM} else 0)
                return
            if code in {1, 2} and ran < _LONGEST_PAUSE and not backoff.failures:
                log.error("a process cannot start; stopping the others", name=command.name, exit_code=code)
                self._code = code
                self._stop()
                return
            if ran > _LONGEST_PAUSE:
                backoff.succeed()
            pause = backoff.fail()
            log.error(
                "a process has ended and is started again", name=command.name, exit_code=code, pause=round(pause, 1)
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)


def follow_supervisor() -> None:
    """Stop this process in order when its supervisor is gone, even after kill -9."""
    supervisor = os.environ.pop(_SUPERVISOR, "")
    if not supervisor:
        return

    def watch() -> None:
        while os.getppid() == int(supervisor):
            time.sleep(0.5)  # not every system reports the end of a parent
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="loader-follow", daemon=True).start()
