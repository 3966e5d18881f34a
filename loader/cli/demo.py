"""Defines `loader demo`, which loads and transforms sample events, and shows the tables and a report.

The sample events take the same way as real events: Segment's own library sends them to the collector. Iterable's events
and the orders of an app come with the keys of two sources. The demo has a database of its own under `LOADER_HOME`, so
sample events never mix with real events.
"""

import logging
import shlex
import shutil
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from segment.analytics.client import Client

from loader.cli import output
from loader.cli.query import run_query
from loader.cli.report import write_report
from loader.cli.results import show_result
from loader.collector.server import serve_in_thread
from loader.errors import SourceError, TransformError, UsageError
from loader.postgres.database import Database, open_database
from loader.postgres.embedded import EmbeddedServer
from loader.postgres.statements import read_statement
from loader.raw.readers import default_reader_url
from loader.raw.sources import add_key, add_source, list_sources
from loader.runtime.logs import configure_logs
from loader.runtime.terminal import count
from loader.sample.calls import Call
from loader.sample.events import generate_sample_events, last_sunday
from loader.settings import Settings, read_settings
from loader.transform.dbt import transform

_APP = "App"
_LABEL = "demo"

# The source of the app has a table of each collection too. Those tables are empty.
_COUNTS = """
    select source || '.' || model, counted
    from raw.cursors, raw.count_rows(source, model) as counted
    where counted > 0
    order by source <> 'iterable', model = 'tracks', model
"""
_CAMPAIGNS = read_statement(__file__, "campaigns").strip()

# The orders of the app are the conversions of the marts.
_VARIABLES = """
conversion_events:
    - {name: order, schema: app, table: order_completed, value: revenue, currency: currency, order_id: order_id}
"""


@click.command()
def demo() -> None:
    """Load and transform sample events in a database of their own, and show the tables and a report."""
    run_demo(read_settings())


def run_demo(settings: Settings) -> None:
    """Send sample events, transform the events, print the tables, and write a report.

    Args:
        settings: The settings of the process; `database_url` is not used, and the demo has variables of its own.

    Raises:
        LoaderError: The embedded database cannot be started, or a step failed.
    """
    configure_logs(logging.WARNING)
    home = settings.home / "demo"
    settings = settings.model_copy(update={"database_url": "", "home": home, "marts": True, "vars": _VARIABLES})
    with open_database(settings) as database:
        output.note(f"Started PostgreSQL under {home}.")
        send_sample_events(database, settings)
        for table in transform(database, settings):
            if table.error:
                raise TransformError(f"{table.source}.{table.table} was not filled: {table.error}")
        counts = _read_rows(database, _COUNTS)
        output.note(f"Split the events into {count(len(counts), 'table')}.")
        output.echo("\n" + output.table([{"table": table, "rows": number} for table, number in counts]))
        output.echo(f"\n{_CAMPAIGNS};\n")
        for result in run_query(database, _CAMPAIGNS):
            show_result(result, "table", 0)
        with database.autocommit() as connection:
            url = default_reader_url(connection, database.url, EmbeddedServer(home).folder)
        output.echo(f"\nConnect with psql or a BI tool: {url}")
        output.echo(
            f"The database stops after {output.duration(settings.embedded_idle)} without use; "
            "this command starts the database again:"
        )
        output.echo(f"LOADER_HOME={shlex.quote(str(home))} {_this_program()} url")
        written = write_report(database, (home / "report.html").resolve(), "Iterable")
        output.echo(f"\nOpen the report of the last 30 days in a browser: {written}")


def _read_rows(database: Database, statement: str) -> list[tuple[Any, ...]]:
    [rows] = [list(result.rows) for result in run_query(database, statement)]
    return rows


def _this_program() -> str:
    """Return the text that starts the running program from a shell in this folder."""
    program = Path(sys.argv[0])
    if program.suffix == ".py":
        return shlex.join([sys.executable, *sys.orig_argv[1:-1]])
    found = shutil.which(program.name)
    if found and Path(found).resolve() == program.resolve():
        return program.name
    return shlex.quote(str(program))


def send_sample_events(database: Database, settings: Settings) -> None:
    """Send the sample events of both sources through the collector, unless an earlier demo has sent all of them.

    A stopped demo sends them again: a call has the same id in each run of a week, and a table has an id once.

    Raises:
        UsageError: The database has the events of an earlier version.
    """
    [(landed,)] = _read_rows(database, "select count(distinct message_id) from raw.events")
    events = generate_sample_events(last_sunday(datetime.now(UTC).date()))
    if landed >= len(events.iterable) + len(events.app):
        output.note("An earlier demo has sent the sample events; nothing was sent.")
        return
    with database.begin() as transaction:
        has_app = any(source.name == _APP for source in list_sources(transaction))
        if landed and not has_app:
            raise UsageError(
                f"{settings.home} has the demo of an earlier version, with other events. "
                "Remove that folder, and run the demo again."
            )
        iterable = add_key(transaction, "Iterable", label=_LABEL)
        if has_app:
            app = add_key(transaction, _APP, label=_LABEL)
        else:
            _, app = add_source(transaction, _APP)
    with serve_in_thread(settings) as url:
        _send_calls(url, iterable, events.iterable)
        _send_calls(url, app, events.app)
    output.note(
        f"Sent {count(len(events.iterable), 'event')} of Iterable and {count(len(events.app), 'order')} of an app with "
        f"Segment's library for Python to a collector at {url}."
    )


def _send_calls(url: str, key: str, calls: Iterable[Call]) -> None:
    """Send calls with Segment's library for Python, and wait for the answers.

    Raises:
        SourceError: The collector did not take a call.
    """
    failed: list[Exception] = []
    # The queue is unbounded, because the library drops the calls for which its queue has no place.
    client = Client(key, host=url, gzip=True, max_queue_size=0, on_error=lambda error, _: failed.append(error))
    for call in calls:
        client.track(
            user_id=call.get("userId"),
            anonymous_id=call.get("anonymousId"),
            event=call["event"],
            properties=call["properties"],
            context=call["context"],
            timestamp=datetime.fromisoformat(call["timestamp"]),
            message_id=call["messageId"],
        )
    client.flush()
    client.join()
    if failed:
        raise SourceError(f"The collector did not take the sample events: {failed[0]}")
