"""Defines `loader status`, which shows the numbers of messages, their places, and whether anything is missing."""

import sys

import click

from loader.cli import context, output
from loader.postgres.database import Database
from loader.transform.status import is_rescan_wanted, read_readable_tables, read_status


def check_record(database: Database) -> None:
    """Print a note if landed events need `loader rescan`."""
    with database.begin() as connection:
        if is_rescan_wanted(connection):
            output.ask_for_rescan()


@click.command()
@context.as_json
def status(*, as_json: bool) -> None:
    """Show the numbers of messages, their places, and whether anything is missing."""
    with context.database(for_reader=True) as (database, settings), database.begin() as connection:
        if database.is_reader:
            readable = read_readable_tables(connection)
            if as_json:
                output.echo_json({"tables": readable})
            else:
                output.echo(output.table(readable))
            output.note("This role reads tables only. The rest of the status needs the URL of the loader's role.")
            return
        state = read_status(connection, settings.spool_folder)
    if as_json:
        output.echo_json(state.as_json())
    else:
        output.show_status(state)
    if state.rescan_wanted or not state.is_whole:
        sys.exit(1)
