"""Lands what a collector's senders have sent: many deliveries in one transaction.

Nearly always there is nothing to do for them but to write their events, since events like them have landed before and
all that they are made of is recorded. Then one statement is the whole transaction: `known_rows` says when, and makes
its rows. Everything else, refused messages and new properties among it, takes a transaction of several steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg
from msgspec.structs import replace

from loader.events.model import Delivery, Event, Refused
from loader.raw.catalog import Generation, PendingChanges, SchemaRegistry
from loader.raw.copy_format import END, HEADER, arrays_of, partition, rows_of
from loader.raw.landing import LandingResult, land


@dataclass(frozen=True)
class UncheckedBatch:
    """Deliveries that have landed by one statement alone, to be checked against a record made anew meanwhile.

    Attributes:
        generation: The generation of the record that the registry compared the deliveries with.
        deliveries: The deliveries.
        size: Their bytes.
    """

    generation: Generation | None
    deliveries: Sequence[Delivery]
    size: int


def known_rows(registry: SchemaRegistry, deliveries: Sequence[Delivery], *, few: int = 0) -> bytes | list[bytes] | None:
    """Make the rows of deliveries with nothing new about them, without asking the database.

    Args:
        registry: The recorded collections and properties that the process knows.
        deliveries: The deliveries.
        few: How many events are to be made the arguments of `INSERT`.

    Returns:
        What `COPY` takes, or a list of what `INSERT` takes; None when there is more to do, or no event.
    """
    by_source: dict[str, list[Event]] = {}
    for delivery in deliveries:
        if delivery.refused:
            return None
        received_at = delivery.received_at
        events = by_source.setdefault(delivery.source, [])
        for event in delivery.events:
            events.append(event if event.received_at else replace(event, received_at=received_at))
    if not any(by_source.values()):
        return None
    for source, events in by_source.items():
        events.sort(key=partition)
        if not registry.knows_all(source, events):
            return None
    now = deliveries[-1].received_at
    if sum(map(len, by_source.values())) <= few:
        return arrays_of(by_source, now)
    return b"".join([HEADER, *(rows_of(source, events, now) for source, events in by_source.items()), END])


def land_deliveries(
    connection: psycopg.Connection, registry: SchemaRegistry, deliveries: Sequence[Delivery]
) -> LandingResult:
    """Land deliveries in a transaction of their own, whatever there is to do for them.

    Args:
        connection: A connection in autocommit.
        registry: The recorded collections and properties that the process knows.
        deliveries: The deliveries.

    Raises:
        psycopg.Error: The database cannot take anything at the moment, or nobody knows whether it has.
    """
    with registry.transaction(connection) as changes:
        return land_parts(connection, deliveries, changes)


def land_parts(
    connection: psycopg.Connection, deliveries: Iterable[Delivery], changes: PendingChanges
) -> LandingResult:
    """Land deliveries in the connection's transaction.

    Args:
        connection: An open connection; the caller commits.
        deliveries: The deliveries.
        changes: Records the properties of landed events.

    Raises:
        psycopg.Error: The database cannot take anything at the moment; nothing is to be committed.
    """
    parts: dict[tuple[str, str], list[Event | Refused]] = {}
    numbers: dict[tuple[int, int], int] = {}
    times = {}
    for index, delivery in enumerate(deliveries):
        part = parts.setdefault((delivery.source, delivery.entrance), [])
        received_at = delivery.received_at
        for event in delivery.events:
            number = numbers.setdefault((index, event.offset), len(numbers))
            times[number] = received_at
            part.append(replace(event, offset=number, received_at=event.received_at or received_at))
        for refused in delivery.refused:
            number = numbers.setdefault((index, refused.offset), len(numbers))
            times[number] = received_at
            part.append(replace(refused, offset=number))
    total = LandingResult()
    for (source, entrance), messages in parts.items():
        total.add(land(connection, source, entrance, messages, changes, times=times))
    return total


def recheck(connection: psycopg.Connection, registry: SchemaRegistry, batches: Iterable[UncheckedBatch]) -> None:
    """Make sure that what deliveries are made of is recorded, after they landed by one statement.

    That they held nothing new was so by the record the registry knew then. Should it have been made again since
    (`loader rescan`), they are looked at once more, whoever has learnt of that first. A rescan that commits later has
    found them itself, for they are committed by now.

    Args:
        connection: A connection in autocommit.
        registry: The recorded collections and properties that the process knows.
        batches: Deliveries that are committed.

    Raises:
        psycopg.Error: The database cannot say.
    """
    with registry.transaction(connection) as changes:
        for unchecked in batches:
            if unchecked.generation != registry.generation:
                for delivery in unchecked.deliveries:
                    changes.record_fields(delivery.source, sorted(delivery.events, key=partition))
