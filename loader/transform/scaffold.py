"""`loader scaffold EVENT`: a model for events that have none yet, written from what has been seen of them.

A run gives such events a table without being asked. A model makes the table the team's own: its columns and their types
are then declared, described and tested in their dbt project.
"""

import re
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select

from loader.errors import UsageError
from loader.events.naming import table_name
from loader.postgres.database import bundled
from loader.raw import tables

# What a yml may hold of a name from outside: nothing that dbt would read as Jinja.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_ .:$-]+\Z")


def scaffold(connection: Connection, source: str, event: str, folder: Path) -> list[Path]:
    """Write the .sql and .yml of a model for an event's table.

    Args:
        connection: An open transaction.
        source: The schema name of the source.
        event: The event's name, or its table's.
        folder: Where to write them.

    Returns:
        The two files. Columns of properties whose names a yml cannot hold safely are left out; a run goes on finding
        them in the events.

    Raises:
        UsageError: No such event has been seen, it has a model already, or a file is there.
    """
    table = table_name(event)
    seen = connection.execute(
        select(tables.collections.c.event).where(
            tables.collections.c.source == source, tables.collections.c.collection == table
        )
    ).first()
    if not table or seen is None:
        raise UsageError(f"No event named {event} has landed in source {source}. `loader status` lists the tables.")
    if (bundled("dbt_project") / "models" / "iterable" / f"{table}.sql").exists():
        raise UsageError(f"{table} has a model already: models/iterable/{table}.sql in the dbt project.")
    files = [folder / f"{table}.sql", folder / f"{table}.yml"]
    for file in files:
        if file.exists():
            raise UsageError(f"{file} is there already. Move it away, or name another folder with --folder.")

    columns = _layout_columns()
    found = (
        select(tables.columns.c.column_name, tables.columns.c.data_type, tables.columns.c.paths)
        .where(tables.columns.c.source == source, tables.columns.c.model == table, ~tables.columns.c.declared)
        .order_by(tables.columns.c.added_at, tables.columns.c.column_name)
    )
    for column in connection.execute(found).mappings():
        section, *keys = column["paths"][0]
        if all(_PLAIN_KEY.match(key) for key in keys):
            columns.append(
                {
                    "name": column["column_name"],
                    "data_type": column["data_type"],
                    "description": f"{'Context value' if section == 'context' else 'Property'} {'.'.join(keys)}.",
                    "config": {"meta": {"context" if section == "context" else "property": keys}},
                }
            )
    model = {
        "name": table,
        "description": f"Events named {_without_jinja(seen[0])}.",
        "config": {"meta": {"found_columns": True}},
        "data_tests": ["matches_raw", "one_event"],
        "columns": columns,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files[0].write_text("{{ collection() }}\n", encoding="utf-8")
    files[1].write_bytes(msgspec.yaml.encode({"version": 2, "models": [model]}))
    return files


def _layout_columns() -> list[dict[str, object]]:
    """Return the columns every table begins with, from the yml that declares them."""
    file = bundled("dbt_project") / "models" / "raw" / "found_collections.yml"
    columns: list[dict[str, object]] = msgspec.yaml.decode(file.read_bytes())["models"][0]["columns"]
    return columns


def _without_jinja(text: str) -> str:
    return text[:200].replace("{", "{ ").replace("}", " }")
