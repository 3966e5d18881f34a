"""The commands about what the tables are made of: which columns there are, of which types, and where they come from."""

import sys
from pathlib import Path

import click

from loader.cli import context, output
from loader.postgres.database import Database
from loader.runtime.terminal import count


def check_record(database: Database) -> None:
    """Tell a person when `loader rescan` has work to do."""
    from loader.transform.status import is_rescan_wanted  # noqa: PLC0415

    with database.begin() as connection:
        if is_rescan_wanted(connection):
            output.ask_for_rescan()


@click.command()
@click.option("--source", help="Name of the source; all of them by default.")
def rescan(source: str | None) -> None:
    """Record anew, from what has landed, which collections and properties there are."""
    from loader.raw.rescan import rescan as run_rescan  # noqa: PLC0415
    from loader.raw.sources import find_source  # noqa: PLC0415

    with context.database() as (database, _), context.autocommit(database) as connection:
        with database.begin() as transaction:
            schema = find_source(transaction, source) if source else None
        found = run_rescan(connection, schema)
    output.echo(
        f"{count(found.events, 'event')} read of {count(found.collections, 'collection')}. "
        f"Properties: {found.properties:,}, of which new: {found.new:,}."
    )
    if found.held:
        output.note(
            f"Not made again, because rows would be lost: {', '.join(found.held)}. `loader status` says how to go on."
        )


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--source", help="Name of the source; all of them by default.")
@context.as_json
def schema(tables: tuple[str, ...], source: str | None, *, as_json: bool) -> None:
    """List the tables, or show the columns of some: type, since when, and how often they are filled.

    TABLE is a name such as email_opened or iterable.email_opened, or an event's name. As JSON, all columns of all
    tables are printed when none is named.
    """
    from loader.raw.sources import find_source  # noqa: PLC0415
    from loader.transform.columns import find_tables, read_columns, read_tables  # noqa: PLC0415

    with context.database() as (database, _), context.autocommit(database) as connection:
        with database.begin() as transaction:
            name = find_source(transaction, source) if source else None
        there = read_tables(connection, name)
        if not tables and not as_json:
            output.show_records(
                there, as_json=False, empty="No table has been made yet: `loader transform` makes them."
            )
            if there:
                output.note(f"`loader schema {there[0].source}.{there[0].table}` shows the columns of a table.")
            return
        columns = read_columns(connection, find_tables(there, tables))
    if as_json:
        output.show_records(columns, as_json=True, empty="")
    else:
        output.show_columns(columns)


@click.command()
def widen() -> None:
    """Finish the columns that something keeps from a wider type: views are made again, large tables rewritten."""
    from loader.transform.columns import advise, waiting_columns  # noqa: PLC0415
    from loader.transform.dbt import transform as run_transform  # noqa: PLC0415

    with context.database() as (database, settings), context.autocommit(database) as connection:
        waiting = waiting_columns(connection)
        if not waiting:
            output.echo("No column is waiting for a wider type.")
            return
        filled = run_transform(database, settings, widen=True)
        left = {(c.source, c.table, c.column): c for c in waiting_columns(connection)}
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


@click.command()
@click.argument("event")
@click.option("--source", help="Name of the source; needed when there are several.")
@click.option("--folder", type=click.Path(path_type=Path), default=".", help="Where to write them.  [default: here]")
def scaffold(event: str, source: str | None, folder: Path) -> None:
    """Write a dbt model (.sql and .yml) for an event that has none, from what has been seen of it."""
    from loader.raw.sources import find_source  # noqa: PLC0415
    from loader.transform.scaffold import scaffold as write_model  # noqa: PLC0415

    with context.database() as (database, _), context.autocommit(database) as connection:
        with database.begin() as transaction:
            name = find_source(transaction, source)
        for file in write_model(connection, name, event, folder):
            output.echo(str(file))
