"""The commands that run for long: `loader serve`, `loader schedule`, `loader up`."""

import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from loader.cli import context
from loader.settings import read_duration, read_settings

if TYPE_CHECKING:
    from loader.runtime.supervisor import Command


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A span of time on the command line, in seconds once it is read."""

    name = "duration"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        try:
            return read_duration(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {error}.", param, ctx)


_every = click.option(
    "--every", type=Duration(), help="Time between two looks for new events, e.g. 5s, 2m [default: LOADER_EVERY]."
)
_host = click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
_port = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default="8080",
    help="Port to listen on; 0 picks a free one.",
)
_processes = click.option(
    "--processes", type=click.IntRange(1, 64), help="Processes that answer on that port [default: LOADER_PROCESSES]."
)


@click.command()
@_host
@_port
@_processes
@click.option("--descriptor", type=int, hidden=True, help="A socket that is open already, inherited.")
def serve(host: str, port: int, processes: int | None, descriptor: int | None) -> None:
    """Take events over HTTP: from Segment's libraries, from Iterable and from Segment's webhooks.

    A request is answered when its events are committed, or safe in the spool while the database is away. SIGTERM stops
    it when every request under way is answered, a second one at once.
    """
    import socket  # noqa: PLC0415

    from loader.collector.server import bind, run_server  # noqa: PLC0415
    from loader.runtime.logs import configure_logs  # noqa: PLC0415
    from loader.runtime.supervisor import follow_supervisor, supervise  # noqa: PLC0415

    settings = read_settings()
    if processes:
        settings = settings.model_copy(update={"processes": processes})
    configure_logs()
    follow_supervisor()
    if descriptor is not None:
        with socket.socket(fileno=descriptor) as listening:
            run_server(settings, listening)
        return
    with bind(host, port) as listening:
        if settings.processes == 1:
            run_server(settings, listening)
            return
        with _collectors(listening.fileno(), settings.processes) as (collectors, ended):
            code = supervise(collectors, ended)
    sys.exit(code)


@contextmanager
def _collectors(descriptor: int, processes: int) -> Iterator[tuple[list["Command"], Callable[[int], None]]]:
    """Yield the commands of several collectors on one port, and what to call with the number of one that has ended."""
    from loader.runtime.metrics import SHARED_FOLDER, forget_process  # noqa: PLC0415
    from loader.runtime.supervisor import Command  # noqa: PLC0415

    arguments = ["serve", f"--processes={processes}", f"--descriptor={descriptor}"]
    with tempfile.TemporaryDirectory(prefix="loader-metrics-") as folder:
        environment = {SHARED_FOLDER: folder} if processes > 1 else {}
        commands = [
            Command(f"collector {number}", arguments, [descriptor], environment) for number in range(1, processes + 1)
        ]
        yield commands, lambda number: forget_process(number, folder)


@click.command()
@_every
def schedule(every: float | None) -> None:
    """Run the transform whenever something new has landed, until stopped.

    Several may run, on any machines: one works, the others stand by. The first SIGTERM or Ctrl-C lets a run that is
    under way finish, the second ends it at once.
    """
    from loader.runtime.logs import configure_logs  # noqa: PLC0415
    from loader.runtime.signals import stopped_by_signals  # noqa: PLC0415
    from loader.runtime.supervisor import follow_supervisor  # noqa: PLC0415
    from loader.transform.scheduler import Schedule  # noqa: PLC0415

    settings = read_settings()
    configure_logs()
    follow_supervisor()
    with stopped_by_signals() as stop:
        Schedule(settings, settings.every if every is None else every).run(stop)


@click.command()
@_host
@_port
@_processes
@_every
def up(host: str, port: int, processes: int | None, every: float | None) -> None:
    """Run the whole product: the collector, the transform every few seconds and the embedded database.

    It stays in the foreground. With `DATABASE_URL` it uses that database, otherwise the embedded one, which it keeps
    up. SIGTERM stops everything in order, a second one at once.
    """
    import structlog  # noqa: PLC0415

    from loader.collector.server import bind  # noqa: PLC0415
    from loader.raw.sources import list_keys, list_sources  # noqa: PLC0415
    from loader.runtime.logs import configure_logs  # noqa: PLC0415
    from loader.runtime.supervisor import Command, follow_supervisor, supervise  # noqa: PLC0415

    configure_logs()
    log = structlog.get_logger("loader")
    follow_supervisor()
    with (
        context.database() as (database, settings),
        bind(host, port) as listening,
        _collectors(listening.fileno(), processes or settings.processes) as (collectors, ended),
    ):
        with database.begin() as connection:
            if not any(key.revoked_at is None for key in list_keys(connection)):
                sources = [shlex.quote(source.name) for source in list_sources(connection)]
                command = f"loader key add {sources[0]}" if sources else "loader source add Iterable"
                log.warning(f"nobody can send events yet: `{command}` makes a write key")
        arguments = ["schedule", f"--every={settings.every if every is None else every:g}"]
        code = supervise([*collectors, Command("schedule", arguments)], ended)
    sys.exit(code)
