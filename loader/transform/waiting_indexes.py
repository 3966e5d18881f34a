"""Builds the indexes that runs have left to `loader index`, because building the index of a large table takes long."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from loader.errors import without_values


@dataclass(frozen=True)
class WaitingIndex:
    """An index that a model's yml lists and its table lacks.

    Attributes:
        name: The name of the index, which is a hash.
        uniqueness: `unique`, or empty.
        columns: The columns, for people.
        definition: The index after the name of the table in `create index`.
    """

    source: str
    table: str
    name: str
    uniqueness: str
    columns: str
    definition: str


_WAITING = """
    select source, model as "table", name, uniqueness, columns, definition
    from raw.waiting_indexes
    order by source, model, columns
"""

_USER_BTREE = "using btree (user_id)"
_USER_PREFIXES = "using spgist (user_id)"


def build_waiting_indexes(connection: psycopg.Connection) -> Iterator[tuple[WaitingIndex, str]]:
    """Build the waiting indexes one by one, beside sessions that read and write.

    Args:
        connection: A connection in autocommit, because each index is built outside a transaction.

    Yields:
        Each index when its turn is over, and the reason why it could not be built; empty on success.
    """
    with connection.cursor(row_factory=class_row(WaitingIndex)) as cursor:
        waiting = cursor.execute(_WAITING).fetchall()
    for index in waiting:
        yield index, _build(connection, index)


def _build(connection: psycopg.Connection, index: WaitingIndex) -> str:
    table = sql.Identifier(index.source, index.table)
    definition = index.definition
    # A try that was stopped leaves an index that no query uses.
    drop = sql.SQL("drop index concurrently if exists {}").format(sql.Identifier(index.source, index.name))
    try:
        # As in a run, a tree of prefixes takes the user ids for which a btree has no room.
        if definition == _USER_BTREE and connection.execute(
            "select raw.has_long_user_id(%s::regclass)", [table.as_string(connection)]
        ).fetchone() == (True,):
            definition = _USER_PREFIXES
        connection.execute(drop)
        connection.execute(
            sql.SQL("create {} index concurrently {} on {} {}").format(
                sql.SQL(index.uniqueness), sql.Identifier(index.name), table, sql.SQL(definition)
            )
        )
    except psycopg.Error as error:
        with suppress(psycopg.Error):
            connection.execute(drop)
        return without_values(error)
    connection.execute(
        "delete from raw.waiting_indexes where source = %s and model = %s and name = %s",
        [index.source, index.table, index.name],
    )
    return ""
