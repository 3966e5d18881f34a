"""Keeps raw.collections and raw.properties: which collections there are, and what their events are made of.

What is new is recorded in the transaction of the events that brought it, as the last thing before the commit and under
a lock of the source. So whoever sees an event sees what it is made of, and a transaction that waits for its turn to
commit keeps nobody waiting for it.
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

# Collections remembered at a time: many more than anybody means to have.
_REMEMBERED = 10_000

_collection = attrgetter("collection")
_payload = attrgetter("payload")

_GENERATION = read_statement(__file__, "generation")
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
        source: The schema name of its source.
        collection: Its collection.
        path: The keys that lead to it.
        first_event_id: The message id of the first such event.
        offset: Where that event is; what is new is recorded in this order.
        types: The types.
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
        source: The schema name of its source.
        collection: Its name.
        event: The name of the first such event, as it came.
        first_event_id: Its message id.
        offset: Where it is.
    """

    source: str
    collection: str
    event: str
    first_event_id: str
    offset: int


class SchemaRegistry:
    """The recorded collections and properties that a process knows, so that an event with known fields costs no query.

    Attributes:
        generation: The generation of the record that this was read from: how often it has been rebuilt, its file, and
            the start of its server. A rescan, a restore, a failover and a pooler that changes servers give another one.
            None while nothing is known.
    """

    def __init__(self) -> None:
        self.shapes: dict[Key, Shape] = {}
        self.collections: set[Key] = set()
        self.generation: str | None = None

    @contextmanager
    def transaction(self, connection: psycopg.Connection) -> Iterator["PendingChanges"]:
        """Open a transaction that records the new fields of its events as it commits.

        Args:
            connection: A connection with no transaction open.

        Yields:
            The changes that the transaction's events bring.
        """
        changes = PendingChanges(self, connection)
        recorded = False
        with connection.transaction():
            self._forget_outdated(connection)
            yield changes
            changes.record()
            recorded = True
        # Only now: a rollback, also one the caller asked for, must not leave anything known that is not recorded.
        if recorded:
            changes.mark_recorded()

    def _forget_outdated(self, connection: psycopg.Connection) -> None:
        """Forget everything when the record is another one, since what we know of it may not be in this one."""
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
        """Say whether events hold nothing that is not known to be recorded, without asking the database.

        Args:
            source: The schema name of their source.
            events: The events, alike ones one after the other.
        """
        for collection, group in groupby(events, key=_collection):
            if collection is None:
                continue
            shape = self.shapes.get((source, collection))
            # A transaction that has not committed may have made a shape for a collection that is not recorded.
            if shape is None or (source, collection) not in self.collections:
                return False
            if next(_refused(shape, list(group)), None) is not None:
                return False
        return True

    def load(self, connection: psycopg.Connection, source: str, collections: Iterable[str]) -> None:
        """Read what is recorded of collections this process has not met yet."""
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
        registry: What is known.
        connection: An open connection.
        reserved: By collection, the paths that are kept whatever other paths the events have.

    Attributes:
        collections: Those not recorded.
        properties: Those not recorded, or not with all their types.
        untracked: Collections with more properties than are tracked.
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
        """Read what is recorded of events' collections; nothing can be read while they are being copied."""
        names = set(map(_collection, events)) - {None}
        if any((source, name) not in self._registry.shapes for name in names):
            self._registry.load(self._connection, source, names)

    def unknown_events(self, source: str, events: Iterable[Event]) -> list[Event]:
        """Return the events that `record_fields` would take apart.

        Args:
            source: The schema name of their source.
            events: Events of collections that are prepared, alike ones one after the other.
        """
        found: list[Event] = []
        for collection, group in groupby(events, key=_collection):
            if collection is not None:
                found.extend(_refused(self._registry.shapes[source, collection], list(group)))
        return found

    def record_fields(self, source: str, events: Sequence[Event]) -> None:
        """Record the new fields of landed events.

        Args:
            source: The schema name of their source.
            events: The events; only those of collections count.
        """
        self.prepare(source, events)
        for collection, group in groupby(events, key=_collection):
            if collection is not None:
                shape = self._registry.shapes[source, collection]
                for event in _refused(shape, list(group)):
                    self._record_unknown((source, collection), shape, event)

    def _record_unknown(self, key: Key, shape: Shape, event: Event) -> None:
        """Take an event apart."""
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
        """Make room for a property; None when the collection has no room left."""
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
        """Record what is new, in the order in which it came, under the locks of the sources until the commit."""
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
        """Keep to the limit although others have recorded properties of the same collections since we looked."""
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
        """Tell the registry that all this is recorded."""
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
    """Yield the events the shape's decoder does not take, the decoder there is when their turn comes."""
    waiting = iter(events)
    while True:
        try:
            # Without a line of Python for each event, for this is what nearly all of them go through.
            deque(map(shape.decode, map(_payload, waiting)), maxlen=0)
        except (msgspec.MsgspecError, RecursionError):
            yield events[len(events) - length_hint(waiting) - 1]
        else:
            return


def digest(path: Path) -> bytes:
    """Return what a property is found by, since keys may be longer than an index entry."""
    return hashlib.sha256(msgspec.json.encode(path)).digest()


def lock_sources(connection: psycopg.Connection, sources: Iterable[str]) -> None:
    """Keep everybody else from recording anything of some sources, until this transaction ends."""
    for source in sorted(sources):
        key = hashlib.sha256(f"raw.properties {source}".encode()).digest()[:8]
        connection.execute(_LOCK_SOURCE, {"key": int.from_bytes(key, signed=True)})


def insert(cursor: psycopg.Cursor, collections: Iterable[Collection], properties: Iterable[Property]) -> None:
    """Record collections and properties in the order of their events; types are added to those recorded."""
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
    """Record that collections have had more properties than are tracked."""
    cursor.executemany(_RECORD_UNTRACKED, sorted(collections))
