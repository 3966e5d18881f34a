"""Defines the options of the long-running commands, and prepares several collector processes on one port."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from loader.runtime.metrics import SHARED_FOLDER, forget_process
from loader.runtime.supervisor import Command
from loader.settings import read_duration


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time span as a value on the command line, such as `2m`, which is converted to seconds."""

    name = "duration"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the time span in seconds."""
        try:
            return read_duration(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {error}.", param, ctx)


every_option = click.option(
    "--every", type=Duration(), help="Time between two checks for new events, e.g. 5s, 2m [default: LOADER_EVERY]."
)
host_option = click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all."
)
port_option = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default="8080",
    help="Port to listen on; 0 picks a free port.",
)
processes_option = click.option(
    "--processes", type=click.IntRange(1, 64), help="Processes that answer on that port [default: LOADER_PROCESSES]."
)


@contextmanager
def collectors(descriptor: int, processes: int) -> Iterator[tuple[list[Command], Callable[[int], None]]]:
    """Prepare several collector processes on one port, with a shared folder for their metrics.

    Args:
        descriptor: The descriptor of the listening socket.
        processes: The number of collectors.

    Yields:
        The commands of the collectors, and a function that takes the process id of an ended collector and removes its
        metrics.
    """
    arguments = ["serve", f"--processes={processes}", f"--descriptor={descriptor}"]
    with tempfile.TemporaryDirectory(prefix="loader-metrics-") as folder:
        environment = {SHARED_FOLDER: folder} if processes > 1 else {}
        commands = [
            Command(f"collector {number}", arguments, [descriptor], environment) for number in range(1, processes + 1)
        ]
        yield commands, lambda number: forget_process(number, folder)
