"""Defines `loader report`, which writes a page with the results of a period."""

import re
from datetime import date, datetime
from pathlib import Path

import click

from loader.cli import context, output
from loader.errors import FileError, UsageError
from loader.postgres.database import Database
from loader.report.figures import read_report
from loader.report.page import render_page

_DAYS = 30
_DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.option("--source", help="Name or schema of the source [default: the only source with marts].")
@click.option("--from", "first", type=_DAY, metavar="DAY", help="First day, such as 2026-03-04.")
@click.option(
    "--to", "last", type=_DAY, metavar="DAY", help="Last day [default: the last day with events that is over]."
)
@click.option(
    "--days",
    type=click.IntRange(1, 3660),
    help=f"Number of days up to the last day, instead of --from [default: {_DAYS}].",
)
@click.option(
    "--output",
    "path",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="File to write; - is stdout [default: report-SOURCE-FROM-TO.html in this folder].",
)
def report(
    source: str | None, first: datetime | None, last: datetime | None, days: int | None, path: Path | None
) -> None:
    """Write the results of a period as one HTML page, to read or to forward.

    The page shows messages, recipients, campaigns, deliverability, links and revenue, with the SQL behind each figure.
    The page needs no network and has no address of a recipient. The command prints the path of the file.
    """
    if first and days:
        raise UsageError("--from and --days both set the first day. Give one of them.")
    with context.database(for_reader=True) as (database, _):
        written = write_report(database, path, source, first_day=_day(first), last_day=_day(last), days=days or _DAYS)
    if written:
        output.echo_exact(str(written))


def write_report(
    database: Database,
    path: Path | None = None,
    source: str | None = None,
    *,
    first_day: date | None = None,
    last_day: date | None = None,
    days: int = _DAYS,
) -> Path | None:
    """Write the report of a source into a file and return its path; with the path `-`, print the report.

    Args:
        database: An open database.
        path: The file; None for a file in this folder that is named after source and period.
        source: The name or schema of the source; None for the only source with marts.
        first_day: The first day of the period; None for `days` before the last day.
        last_day: The last day; None for the last day with events that is over.
        days: The number of days without `first_day`.

    Raises:
        FileError: The file cannot be written.
        LoaderError: The report cannot be made.
    """
    read = read_report(database, source, first_day=first_day, last_day=last_day, days=days)
    page = render_page(read)
    if path is not None and str(path) == "-":
        output.echo_exact(page)
        return None
    name = re.sub(r"\W+", "-", read.source).strip("-").lower() or "source"
    path = path or Path(f"report-{name}-{read.period.first_day}-{read.period.last_day}.html")
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise FileError(
            f"The report cannot be written to {path}: {error.strerror}. Choose a file with --output."
        ) from None
    return path


def _day(moment: datetime | None) -> date | None:
    return moment.date() if moment else None
