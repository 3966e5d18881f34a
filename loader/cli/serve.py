"""Defines `loader serve`, which runs the collector in one or several processes."""

import socket
import sys

import click

from loader.cli import services
from loader.collector.server import bind, run_server
from loader.runtime.logs import configure_logs
from loader.runtime.supervisor import follow_supervisor, supervise
from loader.settings import read_settings


@click.command()
@services.host_option
@services.port_option
@services.processes_option
@click.option("--descriptor", type=int, hidden=True, help="An open socket, inherited.")
def serve(host: str, port: int, processes: int | None, descriptor: int | None) -> None:
    """Accept events over HTTP from Segment's libraries, Iterable's webhooks and Segment's webhooks.

    A request is answered when its events are committed, or synced to the spool while the database is away. SIGTERM
    stops the collector after every request under way is answered. A second SIGTERM stops the collector at once.
    """
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
        with services.collectors(listening.fileno(), settings.processes) as (collectors, ended):
            code = supervise(collectors, ended)
    sys.exit(code)
