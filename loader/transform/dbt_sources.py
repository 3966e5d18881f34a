"""`loader dbt-sources`: writes a dbt package that declares the served tables as sources.

An analyst's project imports the package and names the tables by `source()`, with their descriptions. The package runs
nothing and reads nothing of the schema raw. Tables that runs have found and tables of further sources are in it.
"""

from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg.rows import dict_row

from loader.errors import UsageError
from loader.postgres.statements import read_statement
from loader.transform.model_files import without_jinja

PACKAGE = "iterable_sources"
_ORIGIN = "Written by `loader dbt-sources`. Run the command again when tables or columns are new."
_COLUMNS = read_statement(__file__, "columns")


def write_sources(connection: psycopg.Connection, folder: Path) -> list[Path]:
    """Write the package into a folder, and replace its files of an earlier run.

    Args:
        connection: An open connection of the loader's role.
        folder: The folder of the package. It is made where it is missing.

    Returns:
        The files.

    Raises:
        UsageError: No table has been made yet, or the folder has another dbt project.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_COLUMNS).fetchall()
    if not rows:
        raise UsageError("No table has been made yet: `loader transform` makes them.")
    project = folder / "dbt_project.yml"
    if project.exists() and f"name: {PACKAGE}\n" not in project.read_text(encoding="utf-8"):
        raise UsageError(f"{folder} has another dbt project. Name another folder.")
    files = {
        project: {"name": PACKAGE, "version": "1.0.0", "config-version": 2, "model-paths": ["models"]},
        folder / "models" / "sources.yml": {"version": 2, "sources": _describe(rows)},
    }
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000)
        file.write_text(f"# {_ORIGIN}\n{text}", encoding="utf-8")
    return list(files)


def _describe(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sources = []
    for schema, of_schema in groupby(rows, lambda row: row["schema"]):
        tables = []
        for table, of_table in groupby(of_schema, lambda row: row["table"]):
            columns = list(of_table)
            tables.append(
                {
                    "name": table,
                    "description": without_jinja(columns[0]["table_description"]),
                    "columns": [
                        {
                            "name": column["column"],
                            "data_type": column["data_type"],
                            "description": without_jinja(column["description"]),
                        }
                        for column in columns
                    ],
                }
            )
        sources.append({"name": schema, "schema": schema, "tables": tables})
    return sources
