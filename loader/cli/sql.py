"""Defines `loader sql`, which runs a person's SQL and prints the rows."""

import sys

import click

from loader.cli import context, output
from loader.cli.query import run_query
from loader.cli.results import show_result


@click.command()
@click.argument("statement", metavar="QUERY")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "lines", "csv", "json"]),
    help="Form of the rows; `lines` gives each column a line. [default: table; on a terminal too narrow: lines]",
)
@click.option(
    "--limit",
    type=click.IntRange(0),
    help="Rows to print; 0 prints all. [default: all; 100 on a terminal]",
)
@click.option("--write", is_flag=True, help="Let the statements change the database, in one transaction.")
def sql(statement: str, form: str | None, limit: int | None, *, write: bool) -> None:
    """Run a query and print its rows.

    With - as QUERY, the query is read from standard input. A query runs in a read-only transaction and cannot end it.
    With --write, statements may change the database. Several statements show a result each.

    CSV holds every value exactly. A spreadsheet reads a value that begins with = + - or @ as a formula. Import such
    columns as text.
    """
    with context.database(for_reader=True) as (database, _):
        text = sys.stdin.read() if statement == "-" else statement
        for number, result in enumerate(run_query(database, text, write=write)):
            if number and result.columns is not None:
                output.echo()
            show_result(result, form, limit)  # type: ignore[arg-type]
