"""Reads the columns that wait to be added or widened, and gives advice on their obstacles."""

from dataclasses import dataclass

from sqlalchemy import Connection, case, select

from loader.raw.tables import columns


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
    "has rules or triggers": "Drop the view, run `loader widen` again, and create the view again.",
    "belongs to": "Ask the owner to drop the view, run `loader widen` again, and let the owner create the view again.",
    "uses a type": "Ask the owner to drop the view, run `loader widen` again, and let the owner create the view again.",
    "row type": "Give that column a type of its own, then run `loader widen` again.",
    "generated column": "Drop the generated column, run `loader widen` again, and add the column again.",
    "child table": "Detach the child table, run `loader widen` again, and change the child's column to the same type.",
    "publication": "Take the table out of the publication, run `loader widen` again, and add the table again.",
    "policy": "Drop the policy, run `loader widen` again, and create the policy again for the new type.",
    "trigger": "Drop the trigger, run `loader widen` again, and create the trigger again for the new type.",
    "index": "Drop the index, run `loader widen` again, and create the index again for the new type.",
    "constraint": "Drop the constraint, run `loader widen` again, and add the constraint again for the new type.",
    "default": "Drop the column's default, run `loader widen` again, and set the default again.",
    "function": "Drop the function, run `loader widen` again, and create the function again for the new type.",
    "rule": "Drop the rule or view, run `loader widen` again, and create the rule or view again for the new type.",
}
_VIEWS = "Run `loader widen`: it makes these views again, with owners, grants and comments."


def list_waiting_columns(connection: Connection) -> list[WaitingColumn]:
    """Return the columns that wait to be added or widened."""
    query = (
        select(
            columns.c.source,
            columns.c.model.label("table"),
            columns.c.column_name.label("column"),
            case((columns.c.is_missing, "missing"), else_=columns.c.data_type).label("type"),
            columns.c.wanted_type.label("wanted"),
            columns.c.in_the_way,
        )
        .where(columns.c.wanted_type.is_not(None))
        .order_by(columns.c.source, columns.c.model, columns.c.column_name)
    )
    return [WaitingColumn(**row) for row in connection.execute(query).mappings()]


def advise(in_the_way: str) -> str:
    """Return advice on the obstacle of a waiting column.

    Args:
        in_the_way: The obstacle of `WaitingColumn`: a description, or only the names of views.
    """
    return next((advice for word, advice in _ADVICE.items() if word in in_the_way), _VIEWS)
