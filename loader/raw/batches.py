"""Lands the deliveries of a collector's senders, many in one transaction.

Nearly all batches contain only events whose properties are recorded. `landing_statement` makes one statement from such
a batch, and the statement is the whole transaction. A batch with refused messages or new properties needs several
statements.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psycopg
from msgspec.structs import replace

from loader.events.model import Delivery, Event, Refused
from loader.raw.catalog import PendingChanges, SchemaRegistry
from loader.raw.copy_format import COPY, END, FEW, HEADER, arrays_of, partition, rows_of
from loader.raw.landing import LandingResult, land

# Both statements fail if the generation of the schema registry has changed in the meantime.
_LAND = b"select raw.land($1, $2, $3, $4, $5, $6)"
_COPY = b"select raw.require_generation('%b'); %b"


class LandingStatement(NamedTuple):
    """A statement that lands a batch.

    Attributes:
        text: The SQL text of the statement.
        arguments: The arguments, in binary; empty for a COPY.
        copied: The data of a COPY; empty for other statements.
    """

    text: bytes
    arguments: Sequence[bytes] = ()
    copied: bytes = b""


def landing_statement(registry: SchemaRegistry, deliveries: Sequence[Delivery]) -> LandingStatement | None:
    """Make the statement that lands deliveries with known properties, without a query.

    The statement fails if the record has been replaced since the registry read it. A batch therefore never lands with
    a property that is not recorded.

    Args:
        registry: The recorded collections and properties that the process knows.
        deliveries: The deliveries of the batch.

    Returns:
        The statement; None for a batch with refused messages or unknown properties, or without an event.
    """
    # The generation is read first, because a thread may replace the content of the registry during the comparison.
    generation = (registry.generation or "").encode()
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
    if sum(map(len, by_source.values())) <= FEW:
        return LandingStatement(_LAND, [generation, *arrays_of(by_source, now)])
    rows = b"".join([HEADER, *(rows_of(source, events, now) for source, events in by_source.items()), END])
    return LandingStatement(_COPY % (generation, COPY), copied=rows)


def land_deliveries(
    connection: psycopg.Connection, registry: SchemaRegistry, deliveries: Sequence[Delivery]
) -> LandingResult:
    """Land any deliveries in a transaction of their own, with refused messages and new properties.

    Args:
        connection: A connection in autocommit.
        registry: The recorded collections and properties that the process knows.
        deliveries: The deliveries of the batch.

    Raises:
        psycopg.Error: The database cannot land anything at the moment, or the result of the commit is unknown.
    """
    with registry.transaction(connection) as changes:
        return land_parts(connection, deliveries, changes)


def land_parts(
    connection: psycopg.Connection, deliveries: Iterable[Delivery], changes: PendingChanges
) -> LandingResult:
    """Land deliveries in the connection's transaction.

    Args:
        connection: An open connection; the caller commits.
        deliveries: The deliveries of the batch.
        changes: Records the properties of landed events.

    Raises:
        psycopg.Error: The database cannot land anything at the moment, and the caller must not commit.
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
