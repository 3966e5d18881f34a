"""Defines `loader transform` and `loader widen`, the commands that run dbt."""

import sys

import click

from loader.cli import context, output
from loader.cli.status import check_record
from loader.errors import UsageError
from loader.postgres.database import Database
from loader.transform.dbt import log_file
from loader.transform.dbt import transform as run_transform
from loader.transform.waiting_columns import WaitingColumn, advise, list_waiting_columns


@click.command()
@click.option(
    "--select",
    multiple=True,
    help="Only this table, by its name in `loader status`, or the tables that a dbt selector selects.",
)
@click.option("--full-refresh", is_flag=True, help="Rebuild all rows in place from the landed events.")
@click.option(
    "--allow-loss",
    is_flag=True,
    help="Also rebuild tables whose events are gone from raw.events; the rows of those events are deleted for good.",
)
@click.option("--log-sql", is_flag=True, help="Write each SQL statement to dbt's log, and print the log's path.")
@context.vars_option
def transform(
    select: tuple[str, ...], *, full_refresh: bool, allow_loss: bool, log_sql: bool, variables: str | None
) -> None:
    """Split landed events into the tables, and fill the marts."""
    if allow_loss and not full_refresh:
        raise UsageError("--allow-loss needs --full-refresh: only a rebuild deletes rows.")
    with context.database() as (database, own_settings):
        settings = context.with_variables(own_settings, variables)
        filled = run_transform(
            database, settings, select=select, full_refresh=full_refresh, allow_loss=allow_loss, log_sql=log_sql
        )
        collections = [table for table in filled if not table.is_mart or table.error]
        output.echo(output.table([output.table_filled(table) for table in collections]) or "The marts are up to date.")
        for table in filled:
            if table.note:
                output.note(f"Note: {table.note}")
        if log_sql:
            output.note(f"The statements are in {log_file(settings)}.")
        check_record(database)
        failed = [table for table in filled if table.error or table.held]
        for table in filled:
            for obstacle in table.obstacles:
                output.note(f"Warning: {table.source}.{table.table}: {obstacle}")
        output.show_failures(failed)
        if failed:
            output.note(
                "The other tables are complete. Run the command again after the repair. dbt's log: "
                f"{log_file(settings)}"
            )
            sys.exit(1)


@click.command()
def widen() -> None:
    """Give waiting columns their wider type: make views again, rewrite large tables.

    The command names each other obstacle, with advice.
    """
    with context.database() as (database, settings):
        waiting = _read_waiting(database)
        if not waiting:
            output.echo("No column is waiting for a wider type.")
            return
        filled = run_transform(database, settings, widen=True)
        left = {(c.source, c.table, c.column): c for c in _read_waiting(database)}
        for column in waiting:
            if (column.source, column.table, column.column) not in left:
                output.echo(f"{column.source}.{column.table}.{column.column} is {column.wanted} now.")
        for table in filled:
            if table.error:
                output.note(f"Error: {table.source}.{table.table} stays as it was: {table.error}")
        for waits in left.values():
            output.note(
                f"Error: {waits.source}.{waits.table}.{waits.column} waits for type {waits.wanted}. "
                f"In the way: {waits.in_the_way}. {advise(waits.in_the_way)}"
            )
        if left:
            sys.exit(1)


def _read_waiting(database: Database) -> list[WaitingColumn]:
    with database.begin() as connection:
        return list_waiting_columns(connection)
