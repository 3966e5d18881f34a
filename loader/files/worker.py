"""Lands chunks of files in a worker process, one chunk at a time, until the process's pipe closes.

This module imports few others, because each worker process spends time on every import.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import psycopg

from loader.errors import LoaderError, without_values
from loader.events.formats import parse_chunk
from loader.events.model import Event, Reason, Refused
from loader.files.chunks import Chunk, read_chunk
from loader.files.streams import printable
from loader.postgres.connection import connect, set_session
from loader.postgres.lock_holders import lock_error
from loader.postgres.statements import read_statement
from loader.raw import landing
from loader.raw.catalog import PendingChanges, SchemaRegistry
from loader.raw.landing import LandingResult

_ADVANCE = read_statement(__file__, "advance")


@dataclass(frozen=True)
class Work:
    """One chunk to land.

    Attributes:
        load: The id of its file in raw.loads.
        source: The schema name of its source.
        entrance: The entrance of the file, which decides its format.
        path: The file.
        chunk: The lines.
        warehouse_id: The id that calls name this warehouse by; empty where the ids in calls do not count.
    """

    load: int
    source: str
    entrance: str
    path: str
    chunk: Chunk
    warehouse_id: str = ""


def land_and_advance(
    connection: psycopg.Connection, work: Work, registry: SchemaRegistry, may_commit: Callable[[LandingResult], None]
) -> LandingResult:
    """Land a chunk and move its file's offset, in one transaction.

    Args:
        connection: A connection with no transaction open.
        work: The chunk.
        registry: The recorded collections and properties that the process knows.
        may_commit: Called when the rows are copied; returns after the commit of all earlier chunks.

    Returns:
        The numbers of landed rows and quarantined messages.

    Raises:
        LoaderError: The database cannot take the chunk, or another loader has moved the file's offset.
    """
    try:
        # The registry records changes at the end of the transaction, so that other sessions wait only for an instant.
        with registry.transaction(connection) as changes:
            landed = _land_chunk(connection, work, changes)
            may_commit(landed)
            advanced = connection.execute(
                _ADVANCE,
                {
                    "load": work.load,
                    "offset": work.chunk.offset,
                    "end": work.chunk.end,
                    "digest": work.chunk.digest,
                    "rows": landed.rows,
                    "quarantined": landed.quarantined,
                    "size": work.chunk.size,
                    "content_digest": work.chunk.content_digest,
                },
            )
            if advanced.rowcount != 1:
                raise LoaderError(
                    f"Another loader is loading {work.path}. Let that loader finish or stop it, then run this command "
                    "again."
                )
    except psycopg.errors.LockNotAvailable:
        raise lock_error(connection, f"Loading {work.path} stopped at byte {work.chunk.offset}") from None
    except psycopg.Error as error:
        raise landing.explain(error) from None
    return landed


def _land_chunk(connection: psycopg.Connection, work: Work, changes: PendingChanges) -> LandingResult:
    """Land the lines of a chunk in the connection's transaction."""
    data = read_chunk(work.path, work.chunk)
    messages: Iterable[Event | Refused]
    if work.chunk.truncated:
        total = len(data) + work.chunk.truncated
        detail = f"{total} bytes without a newline; the first {len(data)} are kept here"
        messages = [Refused(data, work.chunk.offset, Reason.LINE_TOO_LONG, detail)]
    else:
        messages = parse_chunk(work.entrance, data, work.chunk.offset, work.warehouse_id)
    return landing.land(connection, work.source, work.entrance, messages, changes, path=printable(work.path))


def main(descriptor: str) -> None:
    """Land chunks until the pipe closes.

    Args:
        descriptor: This process's end of the pipe. Its first object is the database's connection URL and the seconds
            that a statement waits for a lock.
    """
    pipe = Connection(int(descriptor))

    def may_commit(landed: LandingResult) -> None:
        pipe.send(landed)
        pipe.recv()

    try:
        try:
            url, lock_wait = pipe.recv()
            with connect(url, autocommit=True) as connection:
                set_session(connection, lock_wait)
                registry = SchemaRegistry()
                while True:
                    pipe.send(land_and_advance(connection, pipe.recv(), registry, may_commit))
        except LoaderError as error:
            pipe.send(error)
        except (EOFError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - the parent reports every error
            pipe.send(f"{type(error).__name__}: {without_values(error)}")
    except (EOFError, OSError):
        # The parent has closed the pipe or has ended. The server rolls back an open transaction.
        os._exit(0)
