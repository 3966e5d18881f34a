"""Defines the commands for tables, their columns and their indexes."""

import sys
from pathlib import Path

import click

from loader.cli import context, output
from loader.raw.rescan import rescan as run_rescan
from loader.raw.sources import find_source
from loader.runtime.terminal import count
from loader.transform.columns import find_tables, read_columns, read_tables
from loader.transform.dbt_sources import write_sources
from loader.transform.scaffold import scaffold as write_model
from loader.transform.waiting_indexes import build_waiting_indexes


@click.command()
@click.option("--source", help="Name of the source. [default: all sources]")
def rescan(source: str | None) -> None:
    """Rebuild the record of collections and properties from the landed events."""
    with context.database() as (database, _), database.autocommit() as connection:
        schema = context.find_schema(database, source) if source else None
        found = run_rescan(connection, schema)
    output.echo(
        f"{count(found.events, 'event')} read of {count(found.collections, 'collection')}. "
        f"Properties: {found.properties:,}, of which new: {found.new:,}."
    )
    if found.held:
        output.note(
            f"Not rebuilt, because rows would be lost: {', '.join(found.held)}. `loader status` shows the next step."
        )


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--source", help="Name of the source. [default: all sources]")
@context.as_json
def schema(tables: tuple[str, ...], source: str | None, *, as_json: bool) -> None:
    """List the tables, or show the columns of some tables.

    A column has its type, the time it was added, and the share of rows that fill it. TABLE is a name such as
    email_opened or iterable.email_opened, or an event's name. With --json and no TABLE, all columns are printed.
    """
    with context.database() as (database, _), database.autocommit() as connection:
        name = context.find_schema(database, source) if source else None
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
@click.argument("event")
@click.option("--source", help="Name of the source; needed when there are several.")
@click.option("--folder", type=click.Path(path_type=Path), default=".", help="Folder of the files.  [default: here]")
def scaffold(event: str, source: str | None, folder: Path) -> None:
    """Write a dbt model (.sql and .yml) for an event without a model, from its recorded properties."""
    with context.database() as (database, _), database.begin() as connection:
        name = find_source(connection, source)
        for file in write_model(connection, name, event, folder):
            output.echo(str(file))


@click.command("dbt-sources")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default="iterable_sources",
    help="Folder of the package.  [default: iterable_sources]",
)
def dbt_sources(folder: Path) -> None:
    """Write a dbt package that declares all tables as sources, for analysts' projects.

    A project that imports the package names a table by `source('iterable', 'email_opened')`. The role of the project
    needs no rights on the schema raw. Run the command again when tables or columns are new.
    """
    with context.database() as (database, _), database.autocommit() as connection:
        for file in write_sources(connection, folder):
            output.echo(str(file))


@click.command()
def index() -> None:
    """Build the indexes that runs have left, because the table is large.

    Readers and runs go on meanwhile. An index that cannot be built is named with the reason.
    """
    failed = False
    built = False
    with context.database() as (database, _), database.autocommit() as connection:
        for waiting, reason in build_waiting_indexes(connection):
            name = f"the index of {waiting.source}.{waiting.table} on {waiting.columns}"
            if reason:
                output.note(f"Error: {name} could not be built: {reason}")
                failed = True
            else:
                output.echo(f"{name} is built.")
                built = True
    if failed:
        sys.exit(1)
    if not built:
        output.echo("No index is waiting.")
