"""Defines `loader spool` and `loader warehouse-id`, the commands for a collector's spool and the warehouse id."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
import psycopg

from loader.buffer.spool import list_segments
from loader.buffer.spool_replay import land_segment
from loader.cli import context, output
from loader.errors import LoaderError, UsageError
from loader.postgres.warehouse import Warehouse, renew_id
from loader.raw.landing import LandingResult
from loader.runtime.terminal import count
from loader.settings import Settings


@contextmanager
def _opened() -> Iterator[tuple[psycopg.Connection, Settings, str]]:
    """Open the database for a command, and yield a connection, the settings and the warehouse id."""
    with context.database() as (database, settings), database.autocommit() as connection:
        yield connection, settings, Warehouse().identify(connection)


@click.group()
def spool() -> None:
    """The spool: events that wait on this machine's disk."""


@spool.command(name="list")
@context.as_json
def spool_list(*, as_json: bool) -> None:
    """List the segments of the spool, the oldest first."""
    with _opened() as (_, settings, here):
        output.show_records(
            list_segments(settings.spool_folder, here), as_json=as_json, empty="Nothing is in the spool."
        )


@spool.command(name="land")
@click.argument("names", nargs=-1, metavar="[SEGMENT]...")
@click.option("--all", "every", is_flag=True, help="All segments that belong to another warehouse.")
def spool_land(names: tuple[str, ...], *, every: bool) -> None:
    """Land segments in this database, although they belong to another warehouse.

    A collector does not land such segments. Land them when this database has replaced the other warehouse for good.
    """
    if bool(names) == every:
        raise UsageError("Select segments by their names in `loader spool list`, or by --all.")
    total, failed = LandingResult(), 0
    with _opened() as (connection, settings, here):
        chosen = list(names) or [each.segment for each in list_segments(settings.spool_folder, here) if each.foreign]
        for name in chosen:
            try:
                total.add(land_segment(connection, settings.spool_folder, name))
            except LoaderError as error:
                failed += 1
                output.note(f"Error: {error}")
            else:
                output.note(f"{name} has landed and is deleted.")
    output.echo("\n".join(output.landed_lines(total)))
    if failed:
        output.note(f"{count(failed, 'segment')} of {len(chosen)} could not be landed.")
        sys.exit(1)
    if total.quarantined:
        sys.exit(context.EXIT_QUARANTINED)


@click.command(name="warehouse-id")
@click.option("--renew", is_flag=True, help="Give this warehouse a new id. Stop its collectors first.")
def warehouse_id(*, renew: bool) -> None:
    """Print the id of this warehouse, which each segment of a spool carries.

    A dump keeps the id. A physical copy that continues as another warehouse needs a new id: --renew.
    """
    with _opened() as (connection, _, here):
        output.echo(renew_id(connection) if renew else here)
