"""`loader transform`: runs the dbt project in this process and reports the result for each table.

This module only passes the connection to dbt and reads dbt's report from the raw schema. A team that runs the dbt
project from its own scheduler gets exactly the same tables.
"""

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from loader.errors import TransformError, UsageError, without_values
from loader.postgres.database import Database, bundled, connection_environment
from loader.settings import Settings
from loader.transform.dbt_internals import begin_with_tracks, keep_connections, tidied
from loader.transform.reports import (
    read_collections,
    read_held,
    read_mart_notes,
    read_refusals,
    read_sources,
    read_syncs,
)
from loader.transform.waiting_columns import advise, list_waiting_columns

DEFAULT_SCHEMA = "iterable"


@dataclass(frozen=True)
class TableFilled:
    """The result of a run for one table.

    Attributes:
        source: The schema.
        table: The table in it.
        rows: The number of added rows.
        duplicates: The number of events whose id was already in the table.
        new_columns: The added columns.
        duration: The time that dbt spent on the table; zero without new events.
        error: The reason why dbt could not fill or rebuild the table; empty on success.
        held: The reason why the run left the table to a later run; empty if the run did not.
        obstacles: The obstacles to new or wider columns, with advice.
        note: A note for people about the run; empty without one.
        is_mart: Whether the table is a mart. Collections do not wait for marts.
    """

    source: str
    table: str
    rows: int = 0
    duplicates: int = 0
    new_columns: tuple[str, ...] = ()
    duration: timedelta = timedelta(0)
    error: str = ""
    held: str = ""
    obstacles: tuple[str, ...] = ()
    note: str = ""
    is_mart: bool = False


_FOUND_COLLECTIONS = "found_collections"
# The folder of the models that are marts, which also have a tag, and the end of the names of their schemas.
_MARTS_FOLDER = "marts"
_MARTS = "tag:marts"
_MARTS_SUFFIX = "_marts"
_FAILED = frozenset({"error", "skipped"})
_REFUSAL = "Not rebuilt:"
_NO_TABLE = "No table matches {}. `loader status` lists the tables."


def transform(
    database: Database,
    settings: Settings,
    *,
    select: Sequence[str] = (),
    full_refresh: bool = False,
    allow_loss: bool = False,
    widen: bool = False,
    log_sql: bool = False,
) -> list[TableFilled]:
    """Move the events that have landed since the last run into the tables.

    Args:
        database: An open database.
        settings: The process's settings.
        select: Tables as `loader status` names them, models, or other selectors of dbt; none for all tables.
        full_refresh: Rebuild the rows in place, from the events in raw.events.
        allow_loss: Also rebuild tables of which raw.events no longer has all events.
        widen: Also widen the columns that views depend on, and create the views again.
        log_sql: Write each statement to dbt's log.

    Returns:
        All collections that the run has visited, in the order of sources and tables, then the marts with an error or a
        note. Tables with an `error` are unchanged; the others are complete.

    Raises:
        UsageError: No source exists, or nothing matches `select`.
        TransformError: dbt could not start, or a step before the tables failed.
    """
    # The import of dbt takes seconds, and no other command needs it.
    from dbt.cli.main import dbtRunner  # noqa: PLC0415

    with database.begin() as connection:
        sources = read_sources(connection)
        seen = read_collections(connection)
    if not sources:
        raise UsageError("There is no source yet. `loader source add Iterable` adds a source.")

    # Unused artifacts and a log of all statements take half the time of a run without new events. dbt would also list
    # the relations of every schema, and the project's materializations read the catalog themselves. Stdout is for data,
    # so dbt does not log there, and the caller reports errors.
    level = "debug" if log_sql else "info"
    arguments = [
        "--log-level=none",
        "--no-write-json",
        "--no-populate-cache",
        f"--log-level-file={level}",
        "run",
        *project_arguments(settings),
    ]
    selectors, only = _split_selection(sources, seen, select)
    arguments += ["--select", *selectors] if selectors else []
    arguments += ["--full-refresh"] if full_refresh else []
    arguments += [] if settings.marts else ["--exclude", _MARTS]
    arguments += ["--vars", settings.read_vars()] if settings.vars else []
    invocation = ""

    def remember(message: Any) -> None:
        nonlocal invocation
        invocation = message.info.invocation_id

    variables = dbt_environment(database, settings, sources) | {
        "LOADER_WIDEN": str(widen).lower(),
        "LOADER_ALLOW_LOSS": str(allow_loss).lower(),
        "LOADER_ONLY_TABLES": " ".join(only),
    }
    create_private_folders(settings)
    with environment(variables), tidied(), begin_with_tracks(), keep_connections():
        result = dbtRunner(callbacks=[remember]).invoke(arguments)

    if result.exception is not None:
        raise TransformError(f"dbt could not start: {without_values(result.exception)}")
    # After a failed hook, dbt reports the models only as skipped. The hook's error is the reason.
    failed = [r for r in result.result.results if r.status == "error" and r.node.resource_type == "operation"]
    if failed:
        raise TransformError(f"The run failed at {failed[0].node.name}: {_explain(database, failed[0].message)}")
    models = [r for r in result.result.results if r.node.resource_type == "model"]
    if not models:
        raise UsageError(_NO_TABLE.format(" ".join(select)))
    outcomes = {r.node.name: r for r in models if _MARTS_FOLDER not in r.node.fqn}

    with database.begin() as connection:
        synced = read_syncs(connection, invocation)
        waiting = list_waiting_columns(connection)
        refused = read_refusals(connection, invocation) if full_refresh else {}
        held = read_held(connection)
        marts = _failed_marts(database, [r for r in models if _MARTS_FOLDER in r.node.fqn])
        marts += [
            TableFilled(source, "marts", note=f"{source}_marts was made again: {note}.", is_mart=True)
            for source, note in read_mart_notes(connection, invocation)
        ]
    # One model fills all tables without a model of their own. It is not a table, but its failure is reported like one.
    found = outcomes.pop(_FOUND_COLLECTIONS, None)
    named = {name.partition(".")[2] for name in only}
    names = {(source, table) for source in sources for table in outcomes if table not in named}
    names |= {(source, table) for source, _, table in (name.partition(".") for name in only)}
    obstacles: dict[tuple[str, str], list[str]] = {}
    for column in waiting:
        obstacle = f"column {column.column} waits for type {column.wanted}. In the way: {column.in_the_way}."
        obstacles.setdefault((column.source, column.table), []).append(f"{obstacle} {advise(column.in_the_way)}")
    filled = [
        TableFilled(source, table, error=refused[source, table])
        if (source, table) in refused
        else replace(
            _filled(database, source, table, synced.get((source, table)), outcomes.get(table)),
            held=held.get((source, table), ""),
            obstacles=tuple(obstacles.get((source, table), ())),
        )
        for source, table in sorted(names | synced.keys() | refused.keys() | held.keys())
    ]
    if found is not None and found.status in _FAILED and _REFUSAL not in (found.message or ""):
        filled.append(_filled(database, sources[0], _FOUND_COLLECTIONS, None, found))
    return sorted(filled, key=lambda table: sources.index(table.source)) + marts


def _failed_marts(database: Database, outcomes: Sequence[Any]) -> list[TableFilled]:
    """Return the marts that failed, then the marts that dbt skipped because a model before them failed."""
    failed = [
        TableFilled(r.node.schema, r.node.name, error=_explain(database, r.message or r.status), is_mart=True)
        for r in outcomes
        if r.status == "error"
    ]
    cause = ", ".join(mart.table for mart in failed) or "a table that they read"
    skipped = [
        TableFilled(r.node.schema, r.node.name, error=f"Skipped after the failure of {cause}.", is_mart=True)
        for r in outcomes
        if r.status == "skipped"
    ]
    return failed + skipped


def _split_selection(
    sources: Sequence[str], seen: Container[str], select: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the selectors for dbt, and the tables, as source.table, that the selectors are limited to.

    A selector of dbt names a model, which fills tables of all sources.

    Raises:
        UsageError: A source has no such table.
    """
    folder = bundled("dbt_project") / "models"
    models = {path.stem for path in folder.rglob("*.sql") if path.parent.name != _MARTS_FOLDER}
    marts = {path.stem for path in (folder / _MARTS_FOLDER).glob("*.sql")}
    selectors: list[str] = []
    only: list[str] = []
    for name in select:
        source, _, table = name.rpartition(".")
        tables = [f"{each}.{table}" for each in ([source] if source else sources)]
        found = [each for each in tables if each in seen] if table not in models else []
        if table in marts and source.removesuffix(_MARTS_SUFFIX) in {"", *sources} and not found:
            selectors.append(table)
        elif (source and source not in sources) or (not source and not found):
            selectors.append(name)
        elif table in models or found:
            selectors.append(table if table in models else _FOUND_COLLECTIONS)
            only += found or tables
        else:
            raise UsageError(_NO_TABLE.format(name))
    return selectors, only


def _filled(database: Database, source: str, table: str, row: Any, outcome: Any) -> TableFilled:
    """Return the result of a run for a table, from the table's row of raw.syncs and dbt's result, if they exist."""
    failed = row is None and outcome is not None and outcome.status in _FAILED
    return TableFilled(
        source=source,
        table=table,
        rows=row.table_rows if row else 0,
        duplicates=row.duplicates if row else 0,
        new_columns=tuple(row.new_columns) if row else (),
        duration=row.duration if row else timedelta(0),
        error=_explain(database, outcome.message or outcome.status) if failed else "",
        note=(row.note or "") if row else "",
    )


def _explain(database: Database, message: object) -> str:
    """Return an error of dbt without values of events; the error of a lock timeout names the blocking sessions."""
    if "due to lock timeout" in str(message):
        return str(database.lock_error("A statement waited too long"))
    return without_values(message)


def project_arguments(settings: Settings) -> list[str]:
    """Return dbt's arguments for production, and for the folders of the project and of dbt's own files."""
    project = bundled("dbt_project")
    artifacts = settings.home / "dbt"
    return [
        f"--project-dir={project}",
        f"--profiles-dir={project}",
        "--target=warehouse",
        f"--target-path={artifacts / 'target'}",
        f"--log-path={artifacts / 'logs'}",
    ]


def dbt_environment(database: Database, settings: Settings, sources: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that the dbt project reads.

    Args:
        database: An open database.
        settings: The process's settings.
        sources: The schemas of all sources, at least one.
    """
    schema = DEFAULT_SCHEMA if DEFAULT_SCHEMA in sources else sources[0]
    return connection_environment(database.url) | {
        "LOADER_SCHEMA": schema,
        "LOADER_TABLES": str(settings.tables),
        "LOADER_NEW_TABLES": str(settings.new_tables),
        "LOADER_WIDEN_BYTES": str(settings.widen_bytes),
        "LOADER_READER_INDEXES": str(settings.reader_indexes).lower(),
        "LOADER_LOCK_WAIT": str(settings.lock_wait),
        "LOADER_THREADS": str(settings.threads),
    }


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a block, and restore their values at its end."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def create_private_folders(settings: Settings) -> None:
    """Create dbt's folders with access for the owner only, because dbt's log may quote rows."""
    for folder in (settings.home / "dbt", settings.home / "dbt" / "target", settings.home / "dbt" / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)


def log_file(settings: Settings) -> Path:
    """Return the path of dbt's log."""
    return settings.home / "dbt" / "logs" / "dbt.log"
