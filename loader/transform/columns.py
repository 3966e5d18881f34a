"""Reads the tables and columns of sources, and the obstacles to new types, for `loader schema` and `loader widen`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from itertools import groupby
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from loader.errors import UsageError
from loader.events.naming import table_name
from loader.postgres.statements import read_statement


@dataclass(frozen=True)
class Column:
    """One column of a served table.

    Attributes:
        source: The schema.
        table: The table in it.
        column: The name of the column.
        type: The type of the column in the database.
        origin: `declared` in the model's yml, `found` in the events, or `unknown`: not added by a run.
        path: The path of a found column's values in the event.
        first_seen: The time when a run added the column.
        first_event: The id of the event that the column was added for; None for declared columns.
        filled: Share of the table's rows in which the column is not null, 0 to 1; None for an empty table.
    """

    source: str
    table: str
    column: str
    type: str
    origin: str
    path: str
    first_seen: datetime | None
    first_event: str | None
    filled: float | None


@dataclass(frozen=True)
class Table:
    """One served table.

    Attributes:
        source: The schema.
        table: The table in it.
        columns: The number of columns.
        found: The number of columns that were found in the events.
        last_found: The time when a run last added a found column.
    """

    source: str
    table: str
    columns: int
    found: int
    last_found: datetime | None


_TABLES = read_statement(__file__, "tables")
_COLUMNS = read_statement(__file__, "columns")


def read_tables(connection: psycopg.Connection, source: str | None) -> list[Table]:
    """Return the tables of a source, or of all sources.

    Args:
        connection: An open connection.
        source: The schema name of the source; None for all.
    """
    with connection.cursor(row_factory=class_row(Table)) as cursor:
        return cursor.execute(_TABLES, {"source": source}).fetchall()


def find_tables(there: Sequence[Table], names: Sequence[str]) -> list[Table]:
    """Return the tables that names stand for, in the order of `there`; without names, return all tables.

    Args:
        there: The tables to choose from.
        names: Names of the form `table` or `schema.table`, or names of events.

    Raises:
        UsageError: A name stands for no table.
    """
    chosen: set[Table] = set()
    for name in names:
        found = [t for t in there if name in {t.table, f"{t.source}.{t.table}"} or table_name(name) == t.table]
        if not found:
            close = get_close_matches(name, [f"{t.source}.{t.table}" for t in there] + [t.table for t in there], n=3)
            hint = f" Similar names: {', '.join(close)}." if close else ""
            raise UsageError(f"There is no table {name}.{hint} `loader schema` lists the tables.")
        chosen.update(found)
    return [table for table in there if not names or table in chosen]


def read_columns(connection: psycopg.Connection, tables: Sequence[Table]) -> list[Column]:
    """Return the columns that tables have in the database, with the share of filled rows.

    Args:
        connection: An open connection.
        tables: The tables.
    """
    names = {"sources": [table.source for table in tables], "tables": [table.table for table in tables]}
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_COLUMNS, names).fetchall()
    columns: list[Column] = []
    for (source, _), group in groupby(found, lambda row: (row["source"], row["table"])):
        rows = list(group)
        shares = _shares(connection, source, rows)
        columns += [Column(**row, filled=shares.get(row["column"])) for row in rows]
    return columns


def _shares(connection: psycopg.Connection, source: str, columns: list[dict[str, Any]]) -> dict[str, float]:
    """Return the share of rows in which each column of a table is not null; an empty dict for an empty table."""
    names = [column["column"] for column in columns]
    # The counts are an array, because a query returns at most 1,664 columns and a table may have nearly as many.
    statement = sql.SQL("select count(*), array[{}] from {}").format(
        sql.SQL(", ").join(sql.SQL("count({})").format(sql.Identifier(name)) for name in names),
        sql.Identifier(source, columns[0]["table"]),
    )
    row = connection.execute(statement).fetchone()
    if row is None or not row[0]:
        return {}
    return {name: filled / row[0] for name, filled in zip(names, row[1], strict=True)}
