"""What the tables of a source are made of, and what keeps a column from its type: `loader schema`, `loader widen`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row


@dataclass(frozen=True)
class Column:
    """One column of a served table.

    Attributes:
        table: The table, in the source's schema.
        column: Its name.
        type: Its type in the database.
        origin: `declared` in the model's yml, `found` in the events, or `unknown`: added by somebody else.
        path: Where a found column's values are in the event.
        first_seen: When a run added it.
        first_event: The id of the event it was added for; None for declared columns.
        filled: Share of the table's rows in which it is not null, 0 to 1; None while the table has none.
    """

    table: str
    column: str
    type: str
    origin: str
    path: str
    first_seen: datetime | None
    first_event: str | None
    filled: float | None


@dataclass(frozen=True)
class WaitingColumn:
    """A column whose type something keeps from being widened.

    Attributes:
        wanted: The type that would hold every value seen.
        in_the_way: A lock, an object that depends on the column, or the table's size.
    """

    source: str
    table: str
    column: str
    type: str
    wanted: str
    in_the_way: str


# What to do about an object in the way, by words that PostgreSQL names it with.
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

_COLUMNS = """
    select
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
    where cursors.source = %(source)s and (cursors.model = any(%(tables)s) or cardinality(%(tables)s::text[]) = 0)
    order by cursors.model, pg_attribute.attnum
"""
# Columns that wait to be added or widened.
WAITING_COLUMNS = """
    select source, model as table, column_name as column, data_type as type, wanted_type as wanted, in_the_way
    from raw.columns
    where wanted_type is not null
    order by source, model, column_name
"""


def read_layout(connection: psycopg.Connection, source: str, tables: list[str]) -> list[Column]:
    """Return the columns of a source's tables as they are in the database.

    Args:
        connection: An open connection.
        source: The schema name of the source.
        tables: Only these tables; none for all.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_COLUMNS, {"source": source, "tables": tables}).fetchall()
    shares: dict[str, dict[str, float]] = {}
    for row in found:
        if row["table"] not in shares:
            shares[row["table"]] = _shares(connection, source, [r for r in found if r["table"] == row["table"]])
    return [Column(**row, filled=shares[row["table"]].get(row["column"])) for row in found]


def waiting_columns(connection: psycopg.Connection) -> list[WaitingColumn]:
    """Return the columns that cannot be widened while something depends on them."""
    with connection.cursor(row_factory=class_row(WaitingColumn)) as cursor:
        return cursor.execute(WAITING_COLUMNS).fetchall()


def advise(in_the_way: str) -> str:
    """Return what a person can do about something that keeps a column from its type.

    Args:
        in_the_way: As `WaitingColumn` has it: a description, or nothing but the names of views.
    """
    return next((advice for word, advice in _ADVICE.items() if word in in_the_way), _VIEWS)


def _shares(connection: psycopg.Connection, source: str, columns: list[dict[str, Any]]) -> dict[str, float]:
    """Return the share of rows in which each column of a table is not null; nothing when it has no rows."""
    names = [column["column"] for column in columns]
    # As an array: a row of as many counts as a table may have columns would be more than a query may return.
    statement = sql.SQL("select count(*), array[{}] from {}").format(
        sql.SQL(", ").join(sql.SQL("count({})").format(sql.Identifier(name)) for name in names),
        sql.Identifier(source, columns[0]["table"]),
    )
    row = connection.execute(statement).fetchone()
    if row is None or not row[0]:
        return {}
    return {name: filled / row[0] for name, filled in zip(names, row[1], strict=True)}
