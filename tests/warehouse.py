"""What tests of the tables share: events by other hands, what the tables hold, and what they must hold.

`expected` works out the tables from the events alone, in Python and by the words of the contract, so that it can
disagree with the SQL.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Signal
from typing import Any

import psycopg
from click.testing import CliRunner
from dbt.cli.main import cli as dbt_command

import loader.transform.dbt
from loader.postgres.database import Database, bundled, connection_environment
from loader.settings import Settings
from loader.transform.dbt import TableFilled, project_arguments, tidied, transform

COLLECTIONS = (
    "email_bounced",
    "email_delivered",
    "email_link_clicked",
    "email_marked_as_spam",
    "email_opened",
    "email_send_skip",
    "hosted_unsubscribe_click",
    "in_app_clicked",
    "in_app_delivered",
    "in_app_opened",
    "in_app_send_skip",
    "in_app_sent",
    "mobile_app_uninstalled",
    "push_bounced",
    "push_delivered",
    "push_opened",
    "push_send_skip",
    "sms_bounced",
    "sms_clicked",
    "sms_delivered",
    "sms_received",
    "sms_send_skip",
    "subscribed",
    "unsubscribed",
    "web_push_clicked",
    "web_push_delivered",
    "web_push_send_skip",
)
TABLES = (*COLLECTIONS, "tracks")

PROJECT = bundled("dbt_project")

DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class LandingResult:
    """One row of raw.events; `mark` tells it from every other row, and `campaign` is what its campaignId says."""

    seq: int
    source: str
    collection: str | None
    message_id: str
    mark: str
    campaign: object


def land(
    connection: psycopg.Connection,
    collection: str | None,
    message_id: str,
    *,
    source: str = "iterable",
    campaign: object = 1,
    mark: str = "u",
) -> LandingResult:
    """Insert one event in the connection's transaction, as any program with access to the table may."""
    payload = {"type": "track", "event": collection, "userId": mark, "properties": {"campaignId": campaign}}
    row = connection.execute(
        "insert into raw.events (source, collection, message_id, payload) values (%s, %s, %s, %s) returning seq",
        (source, collection, message_id, json.dumps(payload)),
    ).fetchone()
    assert row is not None
    return LandingResult(row[0], source, collection, message_id, mark, campaign)


def land_payload(connection: psycopg.Connection, message_id: str, payload: Mapping[str, Any], **columns: Any) -> None:
    """Insert one event with a payload of any shape."""
    values = {"source": "iterable", "collection": "email_opened"} | columns
    values |= {"message_id": message_id, "payload": json.dumps(payload)}
    names = ", ".join(values)
    places = ", ".join(["%s"] * len(values))
    connection.execute(f"insert into raw.events ({names}) values ({places})", list(values.values()))


def run(database: Database, settings: Settings, *select: str, full_refresh: bool = False) -> list[TableFilled]:
    """Run dbt in this process, on some models or all; none may fail."""
    filled = transform(database, settings, select=select, full_refresh=full_refresh)
    failed = [f"{table.source}.{table.table}: {table.error}" for table in filled if table.error]
    assert not failed, "; ".join(failed)
    return filled


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside the test, which ends it if it does not end by itself."""
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def succeed(process: subprocess.Popen[bytes]) -> None:
    """Wait for a program, and insist that it succeeds."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output.decode(errors="replace")


# What the project was parsed with; with anything else, dbt parses it again.
AS_PARSED = {"LOADER_SCHEMA": "iterable"}


def project_in_use() -> Path:
    """Return the folder of the dbt project that runs in this process take: the whole one, or a test's own."""
    return loader.transform.dbt.bundled("dbt_project")


def parse_once(settings: Settings) -> None:
    """Parse the project in use, unless the home has it parsed: a process that is started there would take longer."""
    if not (settings.home / "dbt" / "target" / "partial_parse.msgpack").exists():
        code, output = run_dbt(settings.database_url, project_in_use(), "parse", *project_arguments(settings))
        assert code == 0, output


def parsed(settings: Settings) -> Path:
    """Return a folder of its own for the artifacts of one more dbt, in which the project is parsed already."""
    parse_once(settings)
    folder = Path(tempfile.mkdtemp(dir=settings.home)) / "dbt"
    shutil.copytree(settings.home / "dbt", folder)
    return folder


def copied_project(settings: Settings) -> Path:
    """Return the folder of a copy of the dbt project, parsed already, in which a test may change what it likes."""
    project = parsed(settings).with_name("project")
    shutil.copytree(project_in_use(), project, ignore=shutil.ignore_patterns("target", "logs"))
    shutil.move(project.with_name("dbt") / "target", project)
    return project


@contextmanager
def start_dbt(settings: Settings, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start dbt as people do by hand: in its folder, with the connection in PG* variables."""
    folder = parsed(settings)
    project = project_in_use()
    command = [sys.executable, "-m", "dbt.cli.main", "--quiet", *arguments]
    command += ["--target-path", str(folder / "target"), "--log-path", str(folder / "logs")]
    with started(command, AS_PARSED | connection_environment(settings.database_url) | variables, project) as process:
        yield process


def run_dbt(url: str, project: Path, *arguments: str, parsed_as: Mapping[str, str] = AS_PARSED) -> tuple[int, str]:
    """Run dbt as `start_dbt` does, but in a copied project and in this process; returns its exit code and output."""
    with chdir(project), tidied():
        done = CliRunner(env={**parsed_as, **connection_environment(url)}).invoke(
            dbt_command, ["--no-use-colors", "--log-level-file=none", *arguments], catch_exceptions=False
        )
    return done.exit_code, done.output


def expected(events: Iterable[LandingResult], source: str, table: str) -> dict[str, LandingResult]:
    """Work out what a table must hold: of the events with one id, the first one landed."""
    rows: dict[str, LandingResult] = {}
    for event in sorted(events, key=lambda e: e.seq):
        belongs = event.collection is not None if table == "tracks" else event.collection == table
        if belongs and event.source == source:
            rows.setdefault(event.message_id, event)
    return rows


def contents(connection: psycopg.Connection, table: str, *, without: Sequence[str] = ("uuid_ts",)) -> list[tuple]:
    """Return all rows of a served table in a fixed order, without some of its columns."""
    schema, name = table.split(".")
    columns = connection.execute(
        "select string_agg(quote_ident(column_name::text), ', ' order by ordinal_position)"
        " from information_schema.columns where table_schema = %s and table_name = %s and column_name <> all(%s)",
        (schema, name, list(without)),
    ).fetchone()
    assert columns is not None
    return connection.execute(f"select {columns[0]} from {table} order by id").fetchall()


def everything(connection: psycopg.Connection, source: str = "iterable") -> dict[str, list[tuple]]:
    """Return what can be compared between increments and a rebuild: every table, and what did not fit."""
    tables = connection.execute(
        "select model from raw.cursors where source = %s and snapshot is not null", (source,)
    ).fetchall()
    state = {table: contents(connection, f"{source}.{table}") for (table,) in tables}
    state["mismatches"] = connection.execute(
        "select model, event_id, column_name, value from raw.mismatches where source = %s order by 1, 2, 3", (source,)
    ).fetchall()
    return state


def assert_union(connection: psycopg.Connection, source: str = "iterable") -> None:
    """Check that tracks has the ids of all collections, and of events without one, and no others."""
    served = connection.execute("select model from raw.cursors where source = %s order by 1", (source,)).fetchall()
    collections = [table for (table,) in served if table in COLLECTIONS]
    assert collections
    union = " union ".join(f"select id from {source}.{table}" for table in collections)
    only = ", ".join(f"'{table}'" for table in collections)
    query = f"""
        (select id from {source}.tracks where event not in ({only}) or event is null union {union})
        except select id from {source}.tracks
    """
    assert connection.execute(query).fetchall() == []
    assert (
        connection.execute(f"select id from {source}.tracks where event in ({only}) except ({union})").fetchall() == []
    )


def law(connection: psycopg.Connection, source: str = "iterable") -> dict[str, int]:
    """Return the conservation law of a source, and check that it adds up."""
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute("select * from raw.conservation where source = %s", (source,)).fetchone()
    assert row is not None
    numbers = {name: int(value) for name, value in row.items() if name != "source"}
    parts = ("in_collections", "in_tracks_only", "quarantined", "discarded", "duplicates", "other_calls", "waiting")
    assert numbers["accepted"] == sum(numbers[part] for part in parts), numbers
    assert numbers.pop("missing_in_collections") == 0
    assert numbers.pop("missing_in_tracks") == 0
    return numbers


def waiting(connection: psycopg.Connection) -> int:
    """Return how many wait for a lock in this connection's database; others' tests have locks of the same names."""
    query = "select from pg_locks join pg_stat_activity using (pid) where not granted and datname = current_database()"
    return len(connection.execute(query).fetchall())


def wait_until(condition: Callable[[], object], what: str = "it to happen") -> None:
    """Wait for something another process brings about, and fail when it does not come."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    pause = Signal()
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:.0f} s for: {what}"
        pause.wait(0.02)
