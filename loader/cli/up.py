"""Defines `loader up`, which runs the whole product in the foreground."""

import shlex
import sys

import click
import psycopg
import structlog

from loader.cli import context, services
from loader.collector.server import bind
from loader.errors import LoaderError
from loader.postgres.database import Database
from loader.raw.destinations import has_destinations
from loader.raw.sources import list_keys, list_sources
from loader.runtime.logs import configure_logs
from loader.runtime.supervisor import Command, follow_supervisor, supervise


@click.command()
@services.host_option
@services.port_option
@services.processes_option
@services.every_option
def up(host: str, port: int, processes: int | None, every: float | None) -> None:
    """Run the whole product: the collector, the transform every few seconds and the embedded database.

    As soon as there is a destination, landed events are delivered too.

    The command stays in the foreground. It uses the database of `DATABASE_URL`, or else the embedded database.
    SIGTERM stops everything in order. A second SIGTERM stops everything at once.
    """
    configure_logs()
    log = structlog.get_logger("loader")
    follow_supervisor()
    with (
        context.database() as (database, settings),
        bind(host, port) as listening,
        services.collectors(listening.fileno(), processes or settings.processes) as (collectors, ended),
    ):
        with database.begin() as connection:
            if not any(key.revoked_at is None for key in list_keys(connection)):
                sources = [shlex.quote(source.name) for source in list_sources(connection)]
                command = f"loader key add {sources[0]}" if sources else "loader source add Iterable"
                log.warning(f"there is no write key yet; `{command}` makes a write key")
        arguments = ["schedule", f"--every={settings.every if every is None else every:g}"]
        forward = Command("forward", ["forward"], is_wanted=lambda: _has_destinations(database))
        code = supervise([*collectors, Command("schedule", arguments), forward], ended)
    sys.exit(code)


def _has_destinations(database: Database) -> bool:
    try:
        with database.connect(autocommit=True) as connection:
            return has_destinations(connection)
    except (LoaderError, psycopg.Error):
        return False
