"""Worker processes that parse and copy chunks of a file side by side, and commit them in the file's order.

A connection keeps one core of the server busy and parsing half of one here, so one of each would leave most machines
idle. Chunks are copied at the same time, but each commits only after the one before it, together with the file's new
offset: whenever the loader is killed, everything before that offset has landed and nothing after it has.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import psycopg

from loader import database, landing
from loader.errors import LoaderError
from loader.files import Chunk
from loader.landing import Landed

_ADVANCE = """
    update raw.loads
    set
        byte_offset = %(end)s,
        digest = %(digest)s,
        rows = rows + %(rows)s,
        quarantined = quarantined + %(quarantined)s,
        updated_at = now()
    where id = %(load)s and byte_offset = %(offset)s
"""


@dataclass(frozen=True)
class Work:
    """One chunk to land.

    Attributes:
        load: The id of its file in raw.loads.
        source: The schema name of its source.
        path: The file.
        chunk: Its lines.
    """

    load: int
    source: str
    path: str
    chunk: Chunk


def land_and_advance(connection: psycopg.Connection, work: Work, may_commit: Callable[[Landed], None]) -> Landed:
    """Land a chunk and move its file's offset, in one transaction.

    Args:
        connection: A connection with no transaction open.
        work: The chunk.
        may_commit: Called when the rows are copied; returns once everything before them is committed.

    Raises:
        LoaderError: The database cannot take the chunk, or another loader has moved the file's offset.
    """
    try:
        with connection.transaction():
            landed = landing.land_chunk(connection, work.source, work.path, work.chunk)
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
                },
            )
            if advanced.rowcount != 1:
                raise LoaderError(
                    f"Another loader is loading {work.path}. Let it finish, or stop it and run this command again."
                )
    except psycopg.Error as error:
        raise landing.explain(error) from None
    return landed


class Workers:
    """A few worker processes, each with its own connection.

    Args:
        url: The database's connection URL.
        count: How many.
    """

    def __init__(self, url: str, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(url, there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        self._idle = deque(self._pipes)
        self._busy: deque[Connection] = deque()

    def submit(self, work: Work) -> Landed | None:
        """Hand a chunk to a worker; when all are busy, wait for the oldest chunk to be committed first.

        Returns:
            What became of the chunk that was committed meanwhile, if one was.

        Raises:
            LoaderError: That chunk could not be landed.
        """
        committed = None if self._idle else self.settle()
        pipe = self._idle.popleft()
        self._send(pipe, work)
        self._busy.append(pipe)
        return committed

    def settle(self) -> Landed | None:
        """Wait for the oldest chunk to be committed.

        Returns:
            What became of it; None when no chunk is under way.

        Raises:
            LoaderError: It could not be landed.
        """
        if not self._busy:
            return None
        pipe = self._busy.popleft()
        self._receive(pipe)
        self._send(pipe, "commit")
        landed = self._receive(pipe)
        self._idle.append(pipe)
        return landed

    def close(self) -> None:
        """Stop the workers; chunks not committed are rolled back."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    @staticmethod
    def _send(pipe: Connection, message: object) -> None:
        try:
            pipe.send(message)
        except OSError:
            raise _died() from None

    @staticmethod
    def _receive(pipe: Connection) -> Landed:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            raise _died() from None
        if isinstance(message, LoaderError):
            raise message
        if not isinstance(message, Landed):
            raise LoaderError(f"A worker process failed: {message}. Run the command again: it goes on from there.")
        return message


def _died() -> LoaderError:
    return LoaderError(
        "A worker process ended without a word, perhaps killed for lack of memory. Everything committed is kept; run "
        "the command again and it goes on from there."
    )


def _work(url: str, pipe: Connection) -> None:
    """Land chunks until the pipe closes: the life of a worker process."""
    # Ctrl-C reaches the whole process group; the parent decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def may_commit(landed: Landed) -> None:
        pipe.send(landed)
        pipe.recv()

    try:
        with database.connect(url) as connection:
            connection.autocommit = True
            while True:
                work = pipe.recv()
                pipe.send(land_and_advance(connection, work, may_commit))
    except EOFError:
        return
    except OSError:
        return
    except LoaderError as error:
        pipe.send(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is to tell it, not this process
        pipe.send(f"{type(error).__name__}: {error}")
