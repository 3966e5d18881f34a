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


@dataclass(frozen=True)
class WaitingColumn:
    """A column that a run could not add or widen.

    Attributes:
        type: The type of the column in the database, or `missing`.
        wanted: The type that can hold all values of the events.
        in_the_way: The obstacle: a lock, an object that depends on the column, or the table's size.
    """

    source: str
    table: str
    column: str
    type: str
    wanted: str
    in_the_way: str


# Advice on an obstacle, by the words that describe the obstacle.
_ADVICE = {
    "process ": "End the transaction of that session, then run `loader widen` again.",
    "prepared transaction": "Commit that transaction or roll it back, then run `loader widen` again.",
    "table's size": "Run `loader widen` when readers can wait: it rewrites the table.",
    "must be owner": "Run `loader widen` as the owner, or give the loader's role the table.",
    "has rules or triggers": "Drop the view, run `loader widen` again, and create the view anew.",
    "belongs to": "Ask the owner to drop the view, run `loader widen` again, and let the owner create the view anew.",
    "uses a type": "Ask the owner to drop the view, run `loader widen` again, and let the owner create the view anew.",
    "row type": "Give that column a type of its own, then run `loader widen` again.",
    "generated column": "Drop the generated column, run `loader widen` again, and add the column anew.",
    "child table": "Detach the child table, run `loader widen` again, and change the child's column to the same type.",
    "publication": "Take the table out of the publication, run `loader widen` again, and add the table anew.",
    "policy": "Drop the policy, run `loader widen` again, and create the policy anew for the new type.",
    "trigger": "Drop the trigger, run `loader widen` again, and create the trigger anew for the new type.",
    "index": "Drop the index, run `loader widen` again, and create the index anew for the new type.",
    "constraint": "Drop the constraint, run `loader widen` again, and add the constraint anew for the new type.",
    "default": "Drop the column's default, run `loader widen` again, and set the default anew.",
    "function": "Drop the function, run `loader widen` again, and create the function anew for the new type.",
    "rule": "Drop the rule or view, run `loader widen` again, and create it anew for the new type.",
}
_VIEWS = "Run `loader widen`: it makes these views again, with owners, grants and comments."

_TABLES = """
    select
        cursors.source,
        cursors.model as table,
        count(*) as columns,
        count(*) filter (where not columns.declared) as found,
        max(columns.added_at) filter (where not columns.declared) as last_found
    from raw.cursors
    inner join pg_attribute
        on pg_attribute.attrelid = to_regclass(format('%%I.%%I', cursors.source, cursors.model))
        and pg_attribute.attnum > 0
        and not pg_attribute.attisdropped
    left join raw.columns
        on columns.source = cursors.source
        and columns.model = cursors.model
        and columns.column_name = pg_attribute.attname
    where %(source)s::text is null or cursors.source = %(source)s
    group by cursors.source, cursors.model
    order by cursors.source, cursors.model
"""
_COLUMNS = """
    select
        cursors.source,
        cursors.model as table,
        pg_attribute.attname as column,
        format_type(pg_attribute.atttypid, pg_attribute.atttypmod) as type,
        case
            when columns.declared then 'declared'
            when not columns.declared then 'found'
            else 'unknown'
        end as origin,
        coalesce(
            (
                select string_agg((select string_agg(key, '.') from jsonb_array_elements_text(path) as key), ', ')
                from jsonb_array_elements(columns.paths) as path
            ),
            ''
        ) as path,
        columns.added_at as first_seen,
        columns.first_event_id as first_event
    from raw.cursors
    inner join pg_attribute
        on pg_attribute.attrelid = to_regclass(format('%%I.%%I', cursors.source, cursors.model))
        and pg_attribute.attnum > 0
        and not pg_attribute.attisdropped
    left join raw.columns
        on columns.source = cursors.source
        and columns.model = cursors.model
        and columns.column_name = pg_attribute.attname
    where (cursors.source, cursors.model) in (select * from unnest(%(sources)s::text[], %(tables)s::text[]))
    order by cursors.source, cursors.model, pg_attribute.attnum
"""
# Columns that wait to be added or widened.
WAITING_COLUMNS = """
    select
        source,
        model as table,
        column_name as column,
        case when is_missing then 'missing' else data_type end as type,
        wanted_type as wanted,
        in_the_way
    from raw.columns
    where wanted_type is not null
    order by source, model, column_name
"""


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
            hint = f" Names like it: {', '.join(close)}." if close else ""
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


def waiting_columns(connection: psycopg.Connection) -> list[WaitingColumn]:
    """Return the columns that wait to be added or widened."""
    with connection.cursor(row_factory=class_row(WaitingColumn)) as cursor:
        return cursor.execute(WAITING_COLUMNS).fetchall()


def advise(in_the_way: str) -> str:
    """Return advice on the obstacle of a waiting column.

    Args:
        in_the_way: The obstacle of `WaitingColumn`: a description, or only the names of views.
    """
    return next((advice for word, advice in _ADVICE.items() if word in in_the_way), _VIEWS)


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
