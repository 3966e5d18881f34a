"""`loader rescan`: makes raw.collections and raw.properties again from the events themselves.

For events that landed before the two were kept, or when somebody has deleted events. What is found is what landing
would have recorded, since the same code looks at the events.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg

from loader.catalog import Key, Property, Seen, Tracker, digest, insert, lock_sources, mark_untracked
from loader.events import Event
from loader.landing import explain
from loader.properties import Path, Shape, covers

_BATCH = 1000

_EVENTS = """
    select source, collection, message_id, seq, payload::text
    from raw.events
    where source = any(%s) and collection is not null
    order by seq
"""
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
# The next run makes the table of such a cursor again, in place.
_MAKE_AGAIN = """
    update raw.cursors set snapshot = null where source = %s and model = %s
"""

# By collection, the types of each path.
Types = dict[Key, dict[Path, set[str]]]


@dataclass
class Rescanned:
    """What a scan found.

    Attributes:
        events: Events read; those that are no track calls are made of nothing.
        collections: Collections they are of.
        properties: Properties they have.
        new: Properties that were not recorded, or not with all their types.
    """

    events: int
    collections: int
    properties: int
    new: int


def rescan(connection: psycopg.Connection, source: str | None = None) -> Rescanned:
    """Make what is recorded of the events again, in one transaction.

    What was recorded before keeps its place, its first event and its time, unless no event has it any more. Landing
    goes on meanwhile, but what brings something new waits. Tables that lack something found here are made again by the
    next run.

    Args:
        connection: A connection in autocommit.
        source: The schema name of a source; None for all of them.

    Raises:
        DatabaseError: The database failed; nothing has changed.
    """
    try:
        with connection.transaction():
            query = "select schema_name from raw.sources where %(source)s::text is null or schema_name = %(source)s"
            sources = [name for (name,) in connection.execute(query, {"source": source})]
            # Nothing new is recorded from here on, so the events of all that is recorded are there to be read.
            lock_sources(connection, sources)
            recorded = _recorded(connection, sources)
            seen = Seen(_Unknowing(), connection, {key: frozenset(types) for key, types in recorded.items()})
            events = _look(connection, sources, seen)
            found = [each for properties in seen.properties.values() for each in properties.values()]
            _replace_collections(connection, sources, seen)
            _replace_properties(connection, found, recorded)
            new = [each for each in found if _is_new(each, recorded)]
            connection.cursor().executemany(_MAKE_AGAIN, sorted({model for each in new for model in _models(each)}))
    except psycopg.Error as error:
        raise explain(error) from None
    return Rescanned(events, len(seen.collections), len(found), len(new))


class _Unknowing(Tracker):
    """A tracker to which nothing is recorded, so that everything is found."""

    def load(self, connection: psycopg.Connection, source: str, collections: Iterable[str]) -> None:  # noqa: ARG002
        """Begin with nothing."""
        for name in collections:
            self.shapes.setdefault((source, name), Shape())


def _look(connection: psycopg.Connection, sources: Sequence[str], seen: Seen) -> int:
    """Read all events in the order they landed, and return how many there are."""
    events = 0
    with connection.cursor("rescan") as cursor:
        cursor.execute(_EVENTS, (list(sources),))
        while rows := cursor.fetchmany(_BATCH):
            events += len(rows)
            for source in sources:
                seen.look(
                    source,
                    [
                        Event(payload.encode(), seq, message_id, collection, None)
                        for of, collection, message_id, seq, payload in rows
                        if of == source
                    ],
                )
            seen.learn()
    return events


def _recorded(connection: psycopg.Connection, sources: Sequence[str]) -> Types:
    recorded: Types = {}
    for source, collection, path, types in connection.execute(_RECORDED_PROPERTIES, (list(sources),)):
        recorded.setdefault((source, collection), {})[tuple(path)] = set(types)
    return recorded


def _replace_collections(connection: psycopg.Connection, sources: Sequence[str], seen: Seen) -> None:
    recorded = set(connection.execute(_RECORDED_COLLECTIONS, (list(sources),)).fetchall())
    with connection.cursor() as cursor:
        cursor.executemany(_FORGET_COLLECTION, sorted(recorded - seen.collections.keys()))
        cursor.execute(_FORGET_UNTRACKED, (list(sources),))
        insert(cursor, [each for key, each in seen.collections.items() if key not in recorded], [])
        mark_untracked(cursor, seen.untracked)


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


def _models(each: Property) -> list[Key]:
    """Return the source and model of the tables that have a column for a property."""
    models = [(each.source, each.collection)]
    return [*models, (each.source, "tracks")] if each.path[0] == "context" else models
