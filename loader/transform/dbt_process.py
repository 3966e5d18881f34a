"""Runs the transform in a child process, which can be killed at any moment and starts anew now and then.

dbt cannot be interrupted from outside its own thread, and a process that runs it for weeks keeps whatever it leaves
behind. In a child, a run ends at once when its scheduler is killed, loses its lock or is told to stop twice, and the
scheduler itself goes on saying that it is alive while a run takes hours.
"""

import contextlib
import gc
import os
import queue
import signal
import threading
from multiprocessing.connection import Connection

from loader.errors import LoaderError, without_values
from loader.postgres.database import open_database
from loader.runtime.child_process import ChildProcess
from loader.settings import Settings
from loader.transform.dbt import TableFilled, transform

# Killed, it leaves semaphores of dbt's to Python's own clean-up, which would say so each time.
_WARNINGS = ["-W", "ignore:resource_tracker:UserWarning"]

# Memory has stayed flat over hundreds of runs; this is for what nobody has measured.
_RUNS_PER_PROCESS = 500


class Runner:
    """One child process at a time, started when a run needs it.

    Args:
        settings: The process's settings, which name the database.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: ChildProcess | None = None
        self._runs = 0

    def start(self) -> None:
        """Begin a run; `finished` tells when it is over.

        Raises:
            LoaderError: There is no process to run it in.
        """
        if self._runs >= _RUNS_PER_PROCESS:
            self.close()
        try:
            if self._child is None:
                # dbt prints errors with the values that caused them. The pipe carries all that may be shown.
                self._child = ChildProcess(
                    "loader.transform.dbt_process", self._settings, options=_WARNINGS, is_silent=True
                )
            self._child.pipe.send(None)
        except OSError as error:
            self.close()
            raise LoaderError(f"Cannot start a process for dbt: {error.strerror}.") from None
        self._runs += 1

    def finished(self, wait: float) -> list[TableFilled] | None:
        """Return what the run did, or None when it still goes on.

        Args:
            wait: Seconds to wait for its end.

        Raises:
            LoaderError: dbt could not start, or the process died.
        """
        if self._child is None:
            raise LoaderError("No run is under way.")
        try:
            if not self._child.pipe.poll(wait):
                return None
            message = self._child.pipe.recv()
        except (EOFError, OSError):
            self.close()
            raise LoaderError("The process that runs dbt ended without a word, perhaps for lack of memory.") from None
        if isinstance(message, LoaderError):
            raise message
        filled: list[TableFilled] = message
        return filled

    def close(self) -> None:
        """Kill the child; a run that is under way leaves each table either as before or complete."""
        if self._child is not None:
            self._child.close()
        self._child = None
        self._runs = 0


def main(descriptor: str) -> None:
    """Run the transform whenever told to, until the pipe closes.

    Args:
        descriptor: This process's end of the pipe; the first thing in it are the settings.
    """
    # Service managers send SIGTERM to every process of a service; the parent lets the run finish.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(int(descriptor))
    orders: queue.SimpleQueue[None] = queue.SimpleQueue()
    with contextlib.suppress(EOFError, OSError):
        settings: Settings = pipe.recv()
        threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
        while True:
            orders.get()
            pipe.send(_run(settings))
            # dbt leaves a million objects in cycles; taken away at once, memory stays at half of what it grows to.
            gc.collect()


def _receive(pipe: Connection, orders: "queue.SimpleQueue[None]") -> None:
    """Pass on the parent's orders; end the process, in the middle of a run too, when the parent is gone."""
    try:
        while True:
            orders.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)


def _run(settings: Settings) -> list[TableFilled] | LoaderError:
    try:
        with open_database(settings) as database:
            return transform(database, settings)
    except LoaderError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is to tell it, not this process
        return LoaderError(f"{type(error).__name__}: {without_values(error)}")
