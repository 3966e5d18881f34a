"""Maintains the schema registry: raw.collections and raw.properties, with all collections and their properties.

New collections and properties are recorded in the transaction of the events that contain them. A transaction that sees
an event therefore also sees the event's properties. Recording needs a lock of the source and is the last step before
the commit. A transaction that waits for this lock therefore holds no lock that blocks others.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter, length_hint

import msgspec
import psycopg

from loader.events.model import Event
from loader.events.naming import column_name
from loader.events.shapes import TRACKED_PROPERTIES, Path, Shape, covers, event_name
from loader.postgres.connection import NO_TIMEOUTS
from loader.postgres.statements import read_statement

# A source and one of its collections.
Key = tuple[str, str]

# Largest number of collections that a process keeps in memory. The limit is far above any intended use.
_REMEMBERED = 10_000

_collection = attrgetter("collection")
_payload = attrgetter("payload")

_LOCK_SOURCE = read_statement(__file__, "lock_source")
_RECORDED_COLLECTIONS = """
    select collection, untracked from raw.collections where source = %s and collection = any(%s)
"""
_RECORDED_PROPERTIES = """
    select collection, path, types from raw.properties where source = %s and collection = any(%s) order by number
"""
_COUNT_PROPERTIES = """
    select collection, count(*) from raw.properties where source = %s and collection = any(%s) group by collection
"""
_RECORDED_PATHS = """
    select path from raw.properties where source = %s and collection = %s
"""
_RECORD_COLLECTION = """
    insert into raw.collections (source, collection, event, first_event_id)
    values (%s, %s, %s, %s)
    on conflict (source, collection) do nothing
"""
_RECORD_UNTRACKED = """
    update raw.collections set untracked = true where source = %s and collection = %s and not untracked
"""
_RECORD_PROPERTY = """
    insert into raw.properties (source, collection, path, digest, column_name, types, first_event_id)
    values (%s, %s, %s, %s, %s, %s, %s)
    on conflict (source, collection, digest) do update
    set types = array(select distinct kind from unnest(properties.types || excluded.types) as kind order by kind)
    where not properties.types @> excluded.types
"""


@dataclass
class Property:
    """A property with types that are not recorded yet.

    Attributes:
        source: The schema name of the source.
        collection: The name of the collection.
        path: The keys that lead to the property.
        first_event_id: The message id of the first event with the property.
        offset: The offset of that event. Properties are recorded in the order of their offsets.
        types: The types that are not recorded yet.
    """

    source: str
    collection: str
    path: Path
    first_event_id: str
    offset: int
    types: set[str] = field(default_factory=set)


@dataclass
class Collection:
    """A collection that is not recorded yet.

    Attributes:
        source: The schema name of the source.
        collection: The name of the collection.
        event: The unchanged name of the first event of the collection.
        first_event_id: The message id of that event.
        offset: The offset of that event. Collections are recorded in the order of their offsets.
    """

    source: str
    collection: str
    event: str
    first_event_id: str
    offset: int


class SchemaRegistry:
    """The copy of the schema registry in a process, which saves a query for an event with known fields.

    Attributes:
        shapes: The known properties, by collection.
        collections: The collections that are known to be recorded.
        generation: The generation of the record that the copy was read from; None while the copy is empty. It consists
            of the number of rebuilds, the file of the table, and the start time of the server. A rescan, a restore, a
            failover, and a pooler that changes servers all change the generation.
    """

    def __init__(self) -> None:
        self.shapes: dict[Key, Shape] = {}
        self.collections: set[Key] = set()
        self.generation: str | None = None

    @contextmanager
    def transaction(self, connection: psycopg.Connection) -> Iterator["PendingChanges"]:
        """Open a transaction that records the new fields of its events just before the commit.

        Args:
            connection: A connection without an open transaction.

        Yields:
            The pending changes, to which the caller adds the fields of the transaction's events.
        """
        changes = PendingChanges(self, connection)
        recorded = False
        with connection.transaction():
            self._forget_outdated(connection)
            yield changes
            changes.record()
            recorded = True
        # The registry learns the changes after the commit. After a rollback, even one by the caller, the registry must
        # not know a field that is not recorded.
        if recorded:
            changes.mark_recorded()

    def _forget_outdated(self, connection: psycopg.Connection) -> None:
        """Clear the copy when the generation has changed, because the new record may lack known fields."""
        cursor = connection.execute(f"{NO_TIMEOUTS}; select raw.lock_generation()")
        while cursor.nextset():
            pass
        ((generation,),) = cursor.fetchall()
        if generation != self.generation:
            self._forget()
            self.generation = generation

    def _forget(self) -> None:
        self.shapes.clear()
        self.collections.clear()

    def knows_all(self, source: str, events: Iterable[Event]) -> bool:
        """Return whether all fields of events are known to be recorded, without a query.

        Args:
            source: The schema name of the source.
            events: The events, with those of one collection next to each other.
        """
        for collection, group in groupby(events, key=_collection):
            if collection is None:
                continue
            shape = self.shapes.get((source, collection))
            # A transaction without a commit may have made a shape for a collection that is not recorded.
            if shape is None or (source, collection) not in self.collections:
                return False
            if next(_refused(shape, list(group)), None) is not None:
                return False
        return True

    def load(self, connection: psycopg.Connection, source: str, collections: Iterable[str]) -> None:
        """Read the recorded properties of the collections that the copy lacks.

        Args:
            connection: An open connection.
            source: The schema name of the source.
            collections: The names of the collections.
        """
        missing = [name for name in collections if (source, name) not in self.shapes]
        if len(self.shapes) + len(missing) > _REMEMBERED:
            self._forget()
            missing = list(collections)
        untracked: dict[str, bool] = dict(connection.execute(_RECORDED_COLLECTIONS, (source, missing)).fetchall())
        properties: dict[str, list[tuple[list[str], list[str]]]] = {name: [] for name in missing}
        for name, path, types in connection.execute(_RECORDED_PROPERTIES, (source, missing)):
            properties[name].append((path, types))
        for name in missing:
            self.shapes[source, name] = Shape(properties[name], untracked=untracked.get(name, False))
        self.collections.update((source, name) for name in untracked)


class PendingChanges:
    """The collections, properties and types of one transaction's events that are not recorded yet.

    Args:
        registry: The copy of the schema registry in this process.
        connection: An open connection.
        reserved: The paths, by collection, that always have room within the limit of tracked properties.

    Attributes:
        collections: The collections that are not recorded.
        properties: The properties that are not recorded, or not with all their types.
        untracked: The collections with more properties than the loader tracks.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        connection: psycopg.Connection,
        reserved: dict[Key, frozenset[Path]] | None = None,
    ) -> None:
        self._registry = registry
        self._connection = connection
        self._reserved = reserved or {}
        self._room: dict[Key, int] = {}
        self._outdated: set[Key] = set()
        self._unlearned: list[tuple[Key, Path, str]] = []
        self.collections: dict[Key, Collection] = {}
        self.properties: dict[Key, dict[Path, Property]] = {}
        self.untracked: set[Key] = set()

    def prepare(self, source: str, events: Iterable[Event]) -> None:
        """Read the recorded properties of the events' collections, because a COPY allows no query while it runs.

        Args:
            source: The schema name of the source.
            events: The events.
        """
        names = set(map(_collection, events)) - {None}
        if any((source, name) not in self._registry.shapes for name in names):
            self._registry.load(self._connection, source, names)

    def unknown_events(self, source: str, events: Iterable[Event]) -> list[Event]:
        """Return the events whose values `record_fields` would inspect.

        Args:
            source: The schema name of the source.
            events: Events of prepared collections, with those of one collection next to each other.
        """
        found: list[Event] = []
        for collection, group in groupby(events, key=_collection):
            if collection is not None:
                found.extend(_refused(self._registry.shapes[source, collection], list(group)))
        return found

    def record_fields(self, source: str, events: Sequence[Event]) -> None:
        """Add the new fields of landed events to the pending changes.

        Args:
            source: The schema name of the source.
            events: The events. Calls other than `track` have no collection and are ignored.
        """
        self.prepare(source, events)
        for collection, group in groupby(events, key=_collection):
            if collection is not None:
                shape = self._registry.shapes[source, collection]
                for event in _refused(shape, list(group)):
                    self._record_unknown((source, collection), shape, event)

    def _record_unknown(self, key: Key, shape: Shape, event: Event) -> None:
        """Inspect an event and add its new fields to the pending changes."""
        try:
            if key not in self._registry.collections and key not in self.collections:
                self.collections[key] = Collection(*key, event_name(event.payload), event.message_id, event.offset)
            shape.missed()
            properties = self.properties.setdefault(key, {})
            for path, kind in shape.unknown_fields(event.payload):
                known = properties.get(path) or self._add(key, shape, path, event)
                if known and not covers(known.types, kind):
                    known.types.add(kind)
                    self._unlearned.append((key, path, kind))
        except RecursionError:
            self._mark_untracked(key, shape)

    def _add(self, key: Key, shape: Shape, path: Path, event: Event) -> Property | None:
        """Add a property to the pending changes; None if the collection has reached the limit of properties."""
        if not shape.knows(path):
            reserved = self._reserved.get(key, frozenset())
            room = self._room.setdefault(key, TRACKED_PROPERTIES - max(shape.tracked, len(reserved)))
            if path not in reserved:
                if not room:
                    self._mark_untracked(key, shape)
                    return None
                self._room[key] = room - 1
        added = Property(*key, path, event.message_id, event.offset)
        self.properties[key][path] = added
        return added

    def _mark_untracked(self, key: Key, shape: Shape) -> None:
        if not shape.untracked:
            self.untracked.add(key)

    def record(self) -> None:
        """Write the pending changes in the order of their events; the locks of the sources last until the commit."""
        found = [each for properties in self.properties.values() for each in properties.values()]
        sources = sorted({of for of, _ in (*self.collections, *self.untracked)} | {each.source for each in found})
        if not sources:
            return
        lock_sources(self._connection, sources)
        for source in sources:
            self._respect_limit(source)
        found = [each for properties in self.properties.values() for each in properties.values()]
        with self._connection.cursor() as cursor:
            insert(cursor, self.collections.values(), found)
            mark_untracked(cursor, self.untracked)

    def _respect_limit(self, source: str) -> None:
        """Remove properties above the limit, which other transactions may have used up in the meantime."""
        names = [name for of, name in self.properties if of == source]
        counts = self._connection.execute(_COUNT_PROPERTIES, (source, names)).fetchall()
        for name, count in counts:
            found = self.properties[source, name]
            if count + len(found) <= TRACKED_PROPERTIES:
                continue
            recorded = {tuple(path) for (path,) in self._connection.execute(_RECORDED_PATHS, (source, name))}
            excess = [path for path in found if path not in recorded][max(TRACKED_PROPERTIES - count, 0) :]
            for path in excess:
                del found[path]
            if excess:
                self.untracked.add((source, name))
                self._outdated.add((source, name))

    def mark_recorded(self) -> None:
        """Add the recorded changes to the copy of the registry."""
        shapes = self._registry.shapes
        self._registry.collections.update(self.collections)
        for key, path, kind in self._unlearned:
            if key in shapes and path in self.properties[key]:
                shapes[key].learn(path, (kind,))
        self._unlearned.clear()
        for key in self.untracked:
            if key in shapes:
                shapes[key].untracked = True
        for key in self._outdated:
            shapes.pop(key, None)


def _refused(shape: Shape, events: Sequence[Event]) -> Iterator[Event]:
    """Yield the events that the decoder of a shape refuses.

    The caller may replace the decoder between two events, and the next event meets the new decoder.
    """
    waiting = iter(events)
    while True:
        try:
            # Nearly all events pass here, so no Python code runs for a single event.
            deque(map(shape.decode, map(_payload, waiting)), maxlen=0)
        except (msgspec.MsgspecError, RecursionError):
            yield events[len(events) - length_hint(waiting) - 1]
        else:
            return


def digest(path: Path) -> bytes:
    """Return the hash that identifies a property in an index; the path itself may be longer than an index entry."""
    return hashlib.sha256(msgspec.json.encode(path)).digest()


def lock_sources(connection: psycopg.Connection, sources: Iterable[str]) -> None:
    """Lock the records of sources, so that no other transaction changes them until this transaction ends."""
    for source in sorted(sources):
        key = hashlib.sha256(f"raw.properties {source}".encode()).digest()[:8]
        connection.execute(_LOCK_SOURCE, {"key": int.from_bytes(key, signed=True)})


def insert(cursor: psycopg.Cursor, collections: Iterable[Collection], properties: Iterable[Property]) -> None:
    """Record collections and properties in the order of their events; new types are added to the recorded types."""
    cursor.executemany(
        _RECORD_COLLECTION,
        [
            (each.source, each.collection, each.event, each.first_event_id)
            for each in sorted(collections, key=lambda each: each.offset)
        ],
    )
    cursor.executemany(
        _RECORD_PROPERTY,
        [
            (
                each.source,
                each.collection,
                list(each.path),
                digest(each.path),
                column_name(each.path),
                sorted(each.types),
                each.first_event_id,
            )
            for each in sorted(properties, key=lambda each: each.offset)
        ],
    )


def mark_untracked(cursor: psycopg.Cursor, collections: Iterable[Key]) -> None:
    """Record that collections have had more properties than the loader tracks."""
    cursor.executemany(_RECORD_UNTRACKED, sorted(collections))
