"""`loader scaffold EVENT`: writes a dbt model for events without a model, from their recorded properties.

A run gives such events a table by itself. With a model, a team owns the table: its dbt project declares, describes and
tests the columns.
"""

import re
from pathlib import Path

import yaml
from sqlalchemy import Connection, select

from loader.errors import UsageError
from loader.events.naming import table_name
from loader.postgres.database import bundled
from loader.raw import tables
from loader.transform.model_files import render_model, without_jinja

# Property names that a yml may contain. dbt would execute other names that contain Jinja.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_ .:$-]+\Z")


def scaffold(connection: Connection, source: str, event: str, folder: Path) -> list[Path]:
    """Write the .sql and .yml of a model for an event's table.

    Args:
        connection: An open transaction.
        source: The schema name of the source.
        event: The event's name, or the name of its table.
        folder: The folder for the two files.

    Returns:
        The two files. Properties whose names are not safe in a yml get no column there; a run still finds their columns
        in the events.

    Raises:
        UsageError: No such event has landed, the event has a model already, or a file exists.
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
            raise UsageError(f"{file} exists already. Move the file away, or name another folder with --folder.")

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
        "description": f"Events named {without_jinja(seen[0][:200])}.",
        "config": {"meta": {"found_columns": True}},
        "data_tests": ["matches_raw", "one_event"],
        "columns": columns,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files[0].write_text("{{ collection() }}\n", encoding="utf-8")
    files[1].write_text(render_model(model), encoding="utf-8")
    return files


def _layout_columns() -> list[dict[str, object]]:
    """Return the columns that every table begins with, from the yml that declares these columns."""
    file = bundled("dbt_project") / "models" / "raw" / "found_collections.yml"
    columns: list[dict[str, object]] = yaml.safe_load(file.read_text(encoding="utf-8"))["models"][0]["columns"]
    return columns
