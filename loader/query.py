"""`loader sql`: a query's result as a table, CSV or JSON.

The only module that imports pandas for people to look at; it costs half a second, so it is imported where it is used.
"""

from typing import TYPE_CHECKING, Literal

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from loader.database import Database
from loader.display import grid
from loader.errors import UsageError
from loader.terminal import escape_json_controls

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["table", "csv", "json"]


def run_query(database: Database, statement: str, *, limit: int | None = None) -> "pd.DataFrame":
    """Run a query and return its rows.

    Args:
        database: An open database.
        statement: One SQL statement; changes it makes are committed.
        limit: Return at most so many rows.

    Raises:
        UsageError: The database refuses the statement.
    """
    import pandas as pd  # noqa: PLC0415

    try:
        with database.begin() as connection:
            # Every value as it is: pandas would turn integers with a NULL among them into floats.
            result = connection.execute(text(statement.replace(":", r"\:")))
            if not result.returns_rows:
                return pd.DataFrame()
            rows = result.fetchall() if limit is None else result.fetchmany(limit)
            return pd.DataFrame([list(row) for row in rows], columns=list(result.keys()), dtype=object)
    except DBAPIError as error:
        message = str(error.orig).strip()
        raise UsageError(f"The database refuses the query: {message}") from None


def render(frame: "pd.DataFrame", form: Format) -> str:
    """Return rows in a form: a table for people, CSV with a heading, or JSON, one list of objects."""
    if form == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    if form == "json":
        return escape_json_controls(frame.to_json(orient="records", date_format="iso", indent=2, default_handler=str))
    if frame.columns.empty:
        return "Done."
    return grid(list(frame.columns), frame.itertuples(index=False, name=None), exact=True)
