"""Defines `loader demo`, which loads and transforms sample events and shows the tables within a minute.

The sample events take the same way as real events: Segment's own library sends them to the collector. The demo has a
database of its own under `LOADER_HOME`, so sample events never mix with real events.
"""

import json
import logging
import shlex
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
from segment.analytics.client import Client

from loader.cli import output
from loader.cli.query import run_query
from loader.cli.results import show_result
from loader.collector.server import serve_in_thread
from loader.errors import SourceError, TransformError
from loader.postgres.database import Database, open_database
from loader.postgres.embedded import EmbeddedServer
from loader.raw.readers import default_reader_url
from loader.raw.sources import add_key
from loader.runtime.logs import configure_logs
from loader.runtime.terminal import count
from loader.settings import Settings, read_settings
from loader.transform.dbt import transform

# Number of copies of each sample event. The copies are minutes apart and have their own ids.
_COPIES = 100

_COUNTS = """
    select source || '.' || model, raw.count_rows(source, model)
    from raw.cursors
    order by model = 'tracks', model
"""
_FIRST_ROWS = """\
select email, campaign_name, template_name
from iterable.email_delivered
order by original_timestamp, id
limit 5"""


@click.command()
def demo() -> None:
    """Load and transform sample events in a database of their own, and show the tables."""
    run_demo(read_settings())


def run_demo(settings: Settings) -> None:
    """Send sample events, transform the events, and print the tables.

    Args:
        settings: The settings of the process; `database_url` is not used.

    Raises:
        LoaderError: The embedded database cannot be started, or a step failed.
    """
    configure_logs(logging.WARNING)
    home = settings.home / "demo"
    settings = settings.model_copy(update={"database_url": "", "home": home})
    with open_database(settings) as database:
        output.note(f"Started PostgreSQL under {home}.")
        _send(database, settings)
        filled = transform(database, settings)
        for table in filled:
            if table.error:
                raise TransformError(f"{table.source}.{table.table} was not filled: {table.error}")
        output.note(f"Split the events into {count(len(filled), 'table')}.")

        counts = _read_rows(database, _COUNTS)
        output.echo("\n" + output.table([{"table": table, "rows": number} for table, number in counts]))
        output.echo(f"\n{_FIRST_ROWS};\n")
        for result in run_query(database, _FIRST_ROWS):
            show_result(result, "table", 0)
        with database.autocommit() as connection:
            url = default_reader_url(connection, database.url, EmbeddedServer(home).folder)
        output.echo(f"\nConnect with psql or a BI tool: {url}")
        output.echo(
            f"The database stops when nothing has used it for {output.duration(settings.embedded_idle)}; "
            "this command starts the database again:"
        )
        output.echo(f"LOADER_HOME={shlex.quote(str(home))} {_this_program()} url")


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


def _send(database: Database, settings: Settings) -> None:
    """Send the sample events through the collector, with Segment's library for Python."""
    if _read_rows(database, "select true from raw.events limit 1"):
        output.note("An earlier demo has sent the sample events; nothing was sent.")
        return
    with database.begin() as transaction:
        key = add_key(transaction, "Iterable", label="demo")
    failed: list[Exception] = []
    sent = 0
    with serve_in_thread(settings) as url:
        client = Client(key, host=url, gzip=True, on_error=lambda error, _: failed.append(error))
        for event in sample_events():
            client.track(
                user_id=event.get("userId"),
                anonymous_id=event.get("anonymousId"),
                event=event["event"],
                properties=event["properties"],
                context=event["context"],
                timestamp=datetime.fromisoformat(event["timestamp"]),
                message_id=event["messageId"],
            )
            sent += 1
        client.flush()
        client.join()
    if failed:
        raise SourceError(f"The collector did not take the sample events: {failed[0]}")
    output.note(f"Sent {count(sent, 'sample event')} with Segment's library for Python to a collector at {url}.")


def sample_events() -> Iterator[dict[str, Any]]:
    """Yield the sample `track` calls of all 22 documented collections, with Iterable's properties; always the same."""
    lines = (Path(__file__).parent / "sample_events.ndjson").read_text(encoding="utf-8").splitlines()
    for copy in range(_COPIES):
        for line in lines:
            event = json.loads(line)
            digest = sha256(f"{event['messageId']}:{copy}".encode()).hexdigest()
            event["messageId"] = f"api-{digest[:27]}"
            for name in ("timestamp", "originalTimestamp", "sentAt", "receivedAt"):
                moved = datetime.fromisoformat(event[name]) + timedelta(minutes=7 * copy)
                event[name] = moved.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            yield event
