"""Deletes messages from the quarantine for good; raw.discarded keeps the number of deleted messages of each kind."""

from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    cast,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
)

from loader.errors import UsageError
from loader.raw.tables import discarded, fits_bigint, loads, quarantine


@dataclass(frozen=True)
class Selection:
    """A choice of open messages: a message must fit all given attributes.

    Attributes:
        load: The number of a load in raw.loads.
        reason: A reason code.
        path: A file, or a folder with all its files.
    """

    load: int | None = None
    reason: str | None = None
    path: str | None = None


def count_messages(connection: Connection, selection: Selection) -> tuple[int, int]:
    """Return the number of open messages in a selection, and their size in bytes.

    Raises:
        UsageError: There is no load with the number of the selection.
    """
    if selection.load is not None and not _has_load(connection, selection.load):
        raise UsageError(f"There is no load {selection.load}. The table raw.loads lists the loads.")
    size = func.octet_length(quarantine.c.payload)
    return _read_sums(connection, select(func.count(), _sum(size)).where(*_conditions(selection)))


def discard_messages(connection: Connection, selection: Selection) -> tuple[int, int]:
    """Delete open messages and record their number in the same transaction.

    Args:
        connection: An open transaction.
        selection: The messages to delete.

    Returns:
        The number of deleted messages, and their size in bytes.
    """
    gone = (
        delete(quarantine)
        .where(*_conditions(selection))
        .returning(
            quarantine.c.source,
            quarantine.c.entrance,
            quarantine.c.reason,
            quarantine.c.path,
            func.octet_length(quarantine.c.payload).label("bytes"),
            quarantine.c.received_at,
        )
        .cte("gone")
    )
    kind = (gone.c.source, gone.c.entrance, gone.c.reason, gone.c.path)
    noted = (
        insert(discarded)
        .from_select(
            ["source", "entrance", "reason", "path", "messages", "bytes", "first_received_at", "last_received_at"],
            select(
                *kind,
                func.count(),
                func.sum(gone.c.bytes),
                func.min(gone.c.received_at),
                func.max(gone.c.received_at),
            ).group_by(*kind),
        )
        .returning(discarded.c.messages, discarded.c.bytes)
        .cte("noted")
    )
    return _read_sums(connection, select(_sum(noted.c.messages), _sum(noted.c.bytes)))


def _has_load(connection: Connection, number: int) -> bool:
    query = select(exists().where(loads.c.id == number))
    return fits_bigint(number) and bool(connection.execute(query).scalar_one())


def _conditions(selection: Selection) -> list[ColumnElement[bool]]:
    """Return the conditions that a message of a selection meets."""
    conditions: list[ColumnElement[bool]] = [quarantine.c.resolved_at.is_(None)]
    if selection.reason is not None:
        conditions.append(quarantine.c.reason == selection.reason)
    if selection.path is not None:
        folder = selection.path.rstrip("/") + "/"
        conditions.append(or_(quarantine.c.path == selection.path, func.starts_with(quarantine.c.path, folder)))
    if selection.load is not None:
        conditions.append(_came_with(selection.load))
    return conditions


def _came_with(load: int) -> ColumnElement[bool]:
    """Return the condition that a message belongs to a load.

    The message is from the file of the load, and arrived before the next load of that file began.
    """
    later = loads.alias("later")
    next_start = (
        select(func.min(later.c.started_at))
        .where(later.c.source == loads.c.source, later.c.path == loads.c.path, later.c.id > loads.c.id)
        .scalar_subquery()
    )
    return exists().where(
        loads.c.id == load,
        loads.c.source == quarantine.c.source,
        loads.c.path == quarantine.c.path,
        quarantine.c.received_at >= loads.c.started_at,
        or_(next_start.is_(None), quarantine.c.received_at < next_start),
    )


def _sum(numbers: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(numbers), 0), BigInteger)


def _read_sums(connection: Connection, statement: Select[int, int]) -> tuple[int, int]:
    row = connection.execute(statement).one()
    return row[0], row[1]
