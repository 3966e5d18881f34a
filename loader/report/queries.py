"""Fills values into the statements of a report, and runs the filled statements.

The page shows the same text, so a person can run it in psql without any change.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

_PARAMETER = re.compile(r"%\((\w+)\)s")

Row = dict[str, Any]
Values = Mapping[str, str | int | date | sql.Identifier]


@dataclass(frozen=True)
class Figure:
    """The rows behind a figure of a report, and the statement that reads them.

    Attributes:
        statement: The SQL, with all values filled in.
        rows: The rows, by the names of their columns.
    """

    statement: str
    rows: list[Row]


def fill_values(statement: str, values: Values) -> str:
    """Return a statement with values in place of its parameters; values are quoted as SQL.

    Args:
        statement: SQL with parameters such as `%(first_day)s`.
        values: The values by the names of the parameters; an identifier stands for a schema.
    """

    def quoted(found: re.Match[str]) -> str:
        value = values[found[1]]
        return (value if isinstance(value, sql.Identifier) else sql.Literal(value)).as_string(None)

    return _PARAMETER.sub(quoted, statement).strip()


def read_figure(connection: psycopg.Connection, statement: str) -> Figure:
    """Run a filled statement and return its rows."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return Figure(statement, cursor.execute(statement.encode()).fetchall())
