"""Rebuilds raw.collections and raw.properties from the landed events, for `loader rescan`.

A rebuild is needed for events that landed before the two tables existed, and after events have been deleted. The same
code inspects the events as for landing, so a rebuild finds the same properties.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from loader.errors import DatabaseError
from loader.events.model import Event
from loader.events.shapes import Path, Shape, covers
from loader.postgres.connection import NO_TIMEOUTS
from loader.postgres.file_locks import POLL_SECONDS
from loader.postgres.statements import read_statement
from loader.raw.catalog import (
    Key,
    PendingChanges,
    Property,
    SchemaRegistry,
    digest,
    insert,
    lock_sources,
    mark_untracked,
)
from loader.raw.landing import explain

_BATCH = 1000
# Longest time, in seconds, that a rescan waits for the end of a landing transaction.
_LANDING_SECONDS = 60.0

_EVENTS = """
    select source, collection, message_id, seq, payload::text
    from raw.events
    where source = any(%s) and collection is not null
    order by seq
"""
_LATE_EVENTS = read_statement(__file__, "late_events")
_LANDING = read_statement(__file__, "landing")
_RECORDED_COLLECTIONS = """
    select source, collection from raw.collections where source = any(%s)
"""
_RECORDED_PROPERTIES = """
    select source, collection, path, types from raw.properties where source = any(%s)
"""
_FORGET_COLLECTION = """
    delete from raw.collections where source = %s and collection = %s
"""
_FORGET_PROPERTY = """
    delete from raw.properties where source = %s and collection = %s and digest = %s
"""
_FORGET_UNTRACKED = """
    update raw.collections set untracked = false where source = any(%s) and untracked
"""
_REPLACE_TYPES = """
    update raw.properties set types = %s where source = %s and collection = %s and digest = %s
"""
# Orders a rebuild, in which the next run replaces all rows in place. The result is false if the rebuild would lose
# rows. A table that does not exist yet gives no result.
_MAKE_AGAIN = """
    select raw.order_rebuild(source, model) from raw.cursors where source = %s and model = %s
"""

_NEXT_GENERATION = read_statement(__file__, "next_generation")

# The values of a query's placeholders.
Values = Sequence[Any] | Mapping[str, Any]
# The types of each path, by collection.
Types = dict[Key, dict[Path, set[str]]]


@dataclass
class RescanResult:
    """The numbers of a rescan.

    Attributes:
        events: Number of events read. Calls other than `track` have no collection and no properties.
        collections: Number of collections of these events.
        properties: Number of properties of these events.
        new: Number of properties that were not recorded, or not with all their types.
        held: Tables that lack new properties but are not rebuilt, because a rebuild would lose rows.
    """

    events: int
    collections: int
    properties: int
    new: int
    held: list[str]


def rescan(connection: psycopg.Connection, source: str | None = None) -> RescanResult:
    """Rebuild the record of collections and properties in one transaction, then inspect the events landed meanwhile.

    A recorded property keeps its number, its first event and its time, unless no event has the property any more.
    Landing continues during the rebuild, but events with new properties wait for its end. The next run rebuilds the
    tables that lack a property that the rescan found.

    Each landing process keeps a copy of the record. A landing transaction that begins after the rebuild sees the new
    generation and clears the copy. A landing transaction that began before the rebuild may rely on a property that the
    rebuild has removed. The rescan therefore waits for these transactions, and then inspects the events that have
    landed since the first inspection.

    Args:
        connection: A connection in autocommit.
        source: The schema name of a source; None for all sources.

    Raises:
        DatabaseError: The database failed, or an older landing transaction stayed open too long. The record is the
            one before or the one after the rebuild. Another rescan completes the work.
    """
    try:
        with connection.transaction():
            connection.execute(NO_TIMEOUTS)
            query = "select schema_name from raw.sources where %(source)s::text is null or schema_name = %(source)s"
            sources = [name for (name,) in connection.execute(query, {"source": source})]
            # From here on, no other transaction records anything. The events of all recorded properties are therefore
            # committed and readable.
            lock_sources(connection, sources)
            recorded = _recorded(connection, sources)
            changes = PendingChanges(
                _EmptyRegistry(), connection, {key: frozenset(types) for key, types in recorded.items()}
            )
            (snapshot,) = connection.execute("select pg_current_snapshot()::text").fetchall()[0]
            events = _look(connection, changes, sources, _EVENTS, (sources,))
            found = [each for properties in changes.properties.values() for each in properties.values()]
            _replace_collections(connection, sources, changes)
            _replace_properties(connection, found, recorded)
            new = [each for each in found if _is_new(each, recorded)]
            held = _make_again(connection, new)
            connection.execute(_NEXT_GENERATION, {"sources": sources})
        _await_landing(connection)
        with connection.transaction():
            connection.execute(NO_TIMEOUTS)
            late = PendingChanges(SchemaRegistry(), connection)
            _look(connection, late, sources, _LATE_EVENTS, {"sources": sources, "snapshot": snapshot})
            late.record()
            held += _make_again(
                connection, [each for properties in late.properties.values() for each in properties.values()]
            )
    except psycopg.errors.LockNotAvailable:
        raise  # the command names the session that holds the lock
    except psycopg.Error as error:
        raise explain(error) from None
    return RescanResult(events, len(changes.collections), len(found), len(new), sorted(set(held)))


class _EmptyRegistry(SchemaRegistry):
    """An empty copy of the schema registry, for which all properties of all events are new."""

    def load(self, connection: psycopg.Connection, source: str, collections: Iterable[str]) -> None:  # noqa: ARG002
        """Add collections without any known property, and without a query."""
        for name in collections:
            self.shapes.setdefault((source, name), Shape())


def _look(
    connection: psycopg.Connection,
    changes: PendingChanges,
    sources: Sequence[str],
    query: LiteralString,
    values: Values,
) -> int:
    """Inspect the events of a query in the order of their landing, and return the number of events.

    Args:
        connection: A connection with an open transaction.
        changes: The pending changes, to which the fields of the events are added.
        sources: The schema names of the sources.
        query: The query for the events.
        values: The values of the query's placeholders.
    """
    events = 0
    with connection.cursor("rescan") as cursor:
        cursor.execute(query, values)
        while rows := cursor.fetchmany(_BATCH):
            events += len(rows)
            for source in sources:
                changes.record_fields(
                    source,
                    [
                        Event(payload.encode(), seq, message_id, collection, None)
                        for of, collection, message_id, seq, payload in rows
                        if of == source
                    ],
                )
            changes.mark_recorded()
    return events


def _await_landing(connection: psycopg.Connection) -> None:
    """Wait until all landing transactions of this moment have ended; later transactions do not matter.

    Raises:
        DatabaseError: A landing transaction has not ended in time.
    """
    deadline = time.monotonic() + _LANDING_SECONDS
    under_way: dict[str, int] = dict(connection.execute(_LANDING).fetchall())
    while under_way:
        if time.monotonic() > deadline:
            processes = ", ".join(sorted(f"process {pid}" for pid in set(under_way.values())))
            raise DatabaseError(
                f"The rescan is recorded, but {processes} has held a transaction on raw.events open for "
                f"{_LANDING_SECONDS:.0f} s. That transaction may land events without a record of their properties. "
                "End the transaction, then run `loader rescan` again."
            )
        time.sleep(POLL_SECONDS)  # PostgreSQL sends no notice of the end of another session's transaction
        now: dict[str, int] = dict(connection.execute(_LANDING).fetchall())
        under_way = {transaction: pid for transaction, pid in under_way.items() if transaction in now}


def _recorded(connection: psycopg.Connection, sources: Sequence[str]) -> Types:
    recorded: Types = {}
    for source, collection, path, types in connection.execute(_RECORDED_PROPERTIES, (list(sources),)):
        recorded.setdefault((source, collection), {})[tuple(path)] = set(types)
    return recorded


def _replace_collections(connection: psycopg.Connection, sources: Sequence[str], changes: PendingChanges) -> None:
    recorded = set(connection.execute(_RECORDED_COLLECTIONS, (list(sources),)).fetchall())
    with connection.cursor() as cursor:
        cursor.executemany(_FORGET_COLLECTION, sorted(recorded - changes.collections.keys()))
        cursor.execute(_FORGET_UNTRACKED, (list(sources),))
        insert(cursor, [each for key, each in changes.collections.items() if key not in recorded], [])
        mark_untracked(cursor, changes.untracked)


def _replace_properties(connection: psycopg.Connection, found: Sequence[Property], recorded: Types) -> None:
    kept = {(each.source, each.collection, each.path): each for each in found}
    changed: list[tuple[list[str], str, str, bytes]] = []
    gone: list[tuple[str, str, bytes]] = []
    for (source, collection), properties in recorded.items():
        for path, types in properties.items():
            each = kept.pop((source, collection, path), None)
            if each is None:
                gone.append((source, collection, digest(path)))
            elif each.types != types:
                changed.append((sorted(each.types), source, collection, digest(path)))
    with connection.cursor() as cursor:
        cursor.executemany(_FORGET_PROPERTY, gone)
        cursor.executemany(_REPLACE_TYPES, changed)
        insert(cursor, [], kept.values())


def _is_new(each: Property, recorded: Types) -> bool:
    types = recorded.get((each.source, each.collection), {}).get(each.path, set())
    return not all(covers(types, kind) for kind in each.types)


def _make_again(connection: psycopg.Connection, new: Sequence[Property]) -> list[str]:
    """Order rebuilds of the tables that lack new properties, and return the tables that would lose rows by a rebuild.

    The next run makes the rebuilds. A table that would lose rows is not rebuilt.
    """
    held = []
    for source, model in sorted({model for each in new for model in _models(each)}):
        if connection.execute(_MAKE_AGAIN, (source, model)).fetchone() == (False,):
            held.append(f"{source}.{model}")
    return held


def _models(each: Property) -> list[Key]:
    """Return the source and model of each table that has a column for a property."""
    models = [(each.source, each.collection)]
    return [*models, (each.source, "tracks")] if each.path[0] == "context" else models
