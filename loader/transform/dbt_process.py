"""Runs the transform in a child process, which the scheduler can kill at any time and replaces after many runs.

No other thread can interrupt dbt, and a process that runs dbt for weeks keeps dbt's leftovers in memory. In a child, a
run ends at once when its scheduler is killed, loses its lock or receives a second signal. The scheduler can also
report that it is alive during a run of hours.
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

# A killed child leaves semaphores of dbt to Python's resource tracker, which would print a warning each time.
_WARNINGS = ["-W", "ignore:resource_tracker:UserWarning"]

# Memory did not grow over hundreds of runs. The limit guards against growth over a longer time.
_RUNS_PER_PROCESS = 500


class Runner:
    """Runs the transform in one child process at a time, which is started for the first run.

    Args:
        settings: The process's settings, which name the database.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: ChildProcess | None = None
        self._runs = 0

    def start(self, *, marts: bool) -> None:
        """Start a run; `finished` returns its result.

        Args:
            marts: Fill the marts, too.

        Raises:
            LoaderError: The system cannot start a child process.
        """
        if self._runs >= _RUNS_PER_PROCESS:
            self.close()
        try:
            if self._child is None:
                # dbt prints errors with the values that caused them. The pipe carries all that may be shown.
                self._child = ChildProcess(
                    "loader.transform.dbt_process", self._settings, options=_WARNINGS, is_silent=True
                )
            self._child.pipe.send(marts)
        except OSError as error:
            self.close()
            raise LoaderError(f"Cannot start a process for dbt: {error.strerror}.") from None
        self._runs += 1

    def finished(self, wait: float) -> list[TableFilled] | None:
        """Return the result of the run for each table; None while the run goes on.

        Args:
            wait: Seconds to wait for the end of the run.

        Raises:
            LoaderError: dbt could not start, or the child process died.
        """
        if self._child is None:
            raise LoaderError("No run is under way.")
        try:
            if not self._child.pipe.poll(wait):
                return None
            message = self._child.pipe.recv()
        except (EOFError, OSError):
            self.close()
            raise LoaderError(
                "The process that runs dbt ended without a message, perhaps for lack of memory. Run the command again."
            ) from None
        if isinstance(message, LoaderError):
            raise message
        filled: list[TableFilled] = message
        return filled

    def close(self) -> None:
        """Kill the child; an unfinished run leaves each table either unchanged or complete."""
        if self._child is not None:
            self._child.close()
        self._child = None
        self._runs = 0


def main(descriptor: str) -> None:
    """Run the transform for each object in the pipe, until the pipe closes.

    Args:
        descriptor: This process's end of the pipe. Its first object is the settings; each later object says whether a
            run fills the marts.
    """
    # Service managers send SIGTERM to all processes of a service. The parent lets the run finish.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(int(descriptor))
    orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
    with contextlib.suppress(EOFError, OSError):
        settings: Settings = pipe.recv()
        threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
        while True:
            pipe.send(_run(settings.model_copy(update={"marts": orders.get()})))
            # dbt leaves a million objects in reference cycles. Collecting them here halves the memory of the process.
            gc.collect()


def _receive(pipe: Connection, orders: "queue.SimpleQueue[bool]") -> None:
    """Queue the parent's orders; end the process, even during a run, when the parent is gone."""
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
    except Exception as error:  # noqa: BLE001 - the parent reports every error
        return LoaderError(f"{type(error).__name__}: {without_values(error)}")
