"""`loader load`: loads files of events into the raw schema, and continues after an interruption at any point.

raw.loads keeps the offset that each file has reached, and a digest of everything before the offset. A file with the
same bytes is the same file, regardless of its name and compression. A file that has grown is continued.
"""

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Literal

import psycopg
from psycopg.rows import class_row

from loader.errors import FileError
from loader.events.formats import FILE, parse_message
from loader.events.model import Event
from loader.files.chunks import Chunk, LineReader, digests_at, read_chunk
from loader.files.exports import open_lines
from loader.files.streams import STANDARD_INPUT, is_regular, printable, read_head
from loader.files.unknown_files import describe_lines
from loader.files.worker import Work, land_and_advance
from loader.files.worker_pool import Workers
from loader.postgres.connection import NO_TIMEOUTS, connect
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import LandingResult

logger = logging.getLogger("loader")

# A file is refused if none of its first lines, up to these limits, is an event.
CHECKED_LINES = 1_000
CHECKED_BYTES = 32_000_000

Outcome = Literal["loaded", "continued", "unchanged", "failed"]


@dataclass
class FileLoaded:
    """The result of loading one file.

    Attributes:
        path: The file.
        outcome: loaded from its beginning, continued after an earlier load, unchanged since an earlier load, or
            failed.
        landed: Rows and quarantined messages of this run.
        error: The reason of a failure; lines before the failure may have landed.
        number: The load's number in raw.loads; None if nothing was loaded.
    """

    path: str
    outcome: Outcome
    landed: LandingResult = field(default_factory=LandingResult)
    error: str = ""
    number: int | None = None


@dataclass
class Progress:
    """The progress of a load.

    Attributes:
        bytes_read: Bytes of the files on disk, compressed or not, that have been read.
        bytes_total: Bytes of all files on disk; 0 if one of the files is standard input.
        landed: Rows and quarantined messages so far.
        started: `time.monotonic()` at the beginning.
    """

    bytes_total: int
    bytes_read: int = 0
    landed: LandingResult = field(default_factory=LandingResult)
    started: float = field(default_factory=time.monotonic)

    def rate(self) -> float:
        """Return the average number of landed rows per second."""
        return self.landed.rows / max(time.monotonic() - self.started, 1e-9)


@dataclass
class _Load:
    """The columns of a row of raw.loads that identify a file."""

    id: int
    path: str
    byte_offset: int
    digest: bytes
    size: int | None
    content_digest: bytes | None


_KNOWN = """
    select id, path, byte_offset, digest, size, content_digest
    from raw.loads
    where source = %s and head = %s
    order by byte_offset desc, id
"""
_START = """
    insert into raw.loads (source, path, head, byte_offset, digest) values (%s, %s, %s, %s, %s) returning id
"""
# Resolves a last line that was incomplete in an earlier load. The complete line is loaded again.
_SUPERSEDE = """
    update raw.quarantine
    set resolved_at = now(), resolution = 'replaced'
    where
        source = %s and path = %s and byte_offset = %s and octet_length(payload) = %s
        and entrance = %s and resolved_at is null
"""
_FINISH = """
    update raw.loads set size = %s, content_digest = %s, finished_at = now(), updated_at = now() where id = %s
"""


class Load:
    """Loads files into one source.

    Args:
        url: The database's connection URL.
        connection: A connection to the database, in autocommit.
        source: The schema name of the source.
        workers: The number of processes that parse and copy.
        lock_wait: Seconds that a worker's statement waits for a lock of another session.
        entrances: By path, the entrances of files that are not files of tracking calls.
        warehouse_id: The id that calls name this warehouse by; empty where the ids in calls do not count.
        checked: Refuse a file whose first lines contain no event, before any line goes to quarantine.
        report: Called after each committed chunk and each file.
    """

    def __init__(
        self,
        url: str,
        connection: psycopg.Connection,
        source: str,
        *,
        workers: int,
        lock_wait: float,
        entrances: Mapping[str, str] | None = None,
        warehouse_id: str = "",
        checked: bool = True,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._url = url
        self._connection = connection
        self._source = source
        self._count = workers
        self._lock_wait = lock_wait
        self._entrances = entrances or {}
        self._warehouse_id = warehouse_id
        self._checked = checked
        self._report = report
        self._registry = SchemaRegistry()
        self._workers: Workers | None = None
        self._guard: psycopg.Connection | None = None
        self._progress = Progress(0)

    def run(self, paths: Sequence[str]) -> Iterator[FileLoaded]:
        """Load files one after the other; a file that cannot be read does not stop the others.

        Args:
            paths: The files; `-` stands for standard input.

        Yields:
            The result of each file, at its end.

        Raises:
            LoaderError: The database cannot take events. Committed chunks stay, and the same call continues after them.
        """
        sizes = {path: _size(path) for path in paths}
        self._progress = Progress(0 if STANDARD_INPUT in paths else sum(sizes.values()))
        try:
            before = 0
            for path in paths:
                try:
                    loaded = self._load(path, before)
                except FileError as error:
                    loaded = FileLoaded(path, "failed", error=str(error))
                before += sizes[path]
                self._progress.bytes_read = before
                self._report(self._progress)
                yield loaded
        finally:
            self._stop_workers()
            if self._guard:
                self._guard.close()
                self._guard = None

    def _load(self, path: str, before: int) -> FileLoaded:
        # A pipe can be read only once, so it is not compared with earlier loads, and workers cannot read it again.
        if not is_regular(path):
            return self._read(path, b"", before, None)
        head = self._read_head(path)
        with self._keep_others_away(path, head):
            load, is_unchanged = self._recognise(path, self._find_known(head))
            return FileLoaded(path, "unchanged") if is_unchanged else self._read(path, head, before, load)

    def _entrance(self, path: str) -> str:
        return self._entrances.get(path, FILE)

    def _open(self, path: str) -> AbstractContextManager[tuple[io.BufferedReader, IO[bytes]]]:
        return open_lines(path, self._entrance(path))

    def _read_head(self, path: str) -> bytes:
        """Return the digest that finds earlier loads of a file.

        The digest contains the entrance, because the same bytes become other events at another entrance.
        """
        with self._open(path) as (stream, _):
            head = read_head(stream)
        entrance = self._entrance(path)
        return head if entrance == FILE else hashlib.sha256(entrance.encode() + head).digest()

    def _read(self, path: str, head: bytes, before: int, load: _Load | None) -> FileLoaded:
        """Load a file up to its end, from its beginning or from the end of an earlier load."""
        is_repeatable = is_regular(path)
        with self._open(path) as (stream, beneath):
            loaded = FileLoaded(path, "continued" if load else "loaded")
            reader = LineReader(stream, path, with_data=not is_repeatable or stream is not beneath)
            chunks = reader.chunks()
            if load:
                number = self._continue(reader, path, head, load)
            else:
                position, digest = reader.position, reader.digest
                if self._checked:
                    chunks = self._check_first(path, chunks)
                number = self._start(path, head, position, digest)
            loaded.number = number

            def committed(landed: LandingResult | None) -> None:
                if landed:
                    loaded.landed.add(landed)
                    self._progress.landed.add(landed)
                    self._progress.bytes_read = before + (beneath.tell() if is_repeatable else 0)
                    self._report(self._progress)

            try:
                for landed in self._land(number, path, chunks):
                    committed(landed)
            except FileError as error:
                self._stop_workers()
                loaded.outcome, loaded.error = "failed", str(error)
                return loaded
            if reader.damage:
                loaded.outcome = "failed"
                loaded.error = (
                    f"{path} is cut short or damaged ({reader.damage}). Its readable part was loaded. Load the whole "
                    "file when you have it, and the load continues after that part."
                )
                return loaded
            self._connection.execute(_FINISH, (reader.size, reader.content_digest, number))
        return loaded

    def _work(self, load: int, path: str, chunk: Chunk) -> Work:
        return Work(load, self._source, self._entrance(path), path, chunk, self._warehouse_id)

    def _land(self, load: int, path: str, chunks: Iterator[Chunk]) -> Iterator[LandingResult | None]:
        """Land a file's chunks; this process lands a file of one chunk, so small files start no workers."""
        first = list(islice(chunks, 2))
        is_small = len(first) < 2 or first[1].content_digest is not None
        if is_small or self._count == 1:
            for chunk in chain(first, chunks):
                work = self._work(load, path, chunk)
                yield land_and_advance(self._connection, work, self._registry, lambda _: None)
            return
        if self._workers is None:
            self._workers = Workers(self._url, self._count, self._lock_wait)
        unreadable: FileError | None = None
        rest = chain(first, chunks)
        following: Chunk | None
        while True:
            try:
                following = next(rest, None)
            except FileError as error:
                # The chunks before the error still land.
                unreadable, following = error, None
            if following is None:
                break
            yield self._workers.submit(self._work(load, path, following))
        while landed := self._workers.commit_oldest():
            yield landed
        if unreadable:
            raise unreadable

    def _check_first(self, path: str, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Return the chunks of a file, after a check that its first lines contain an event.

        Raises:
            FileError: The first lines hold no event.
        """
        entrance = self._entrance(path)
        held: list[Chunk] = []
        lines: list[bytes] = []
        for chunk in chunks:
            held.append(chunk)
            for line in _lines(path, chunk, CHECKED_LINES - len(lines)):
                if any(isinstance(message, Event) for message in parse_message(entrance, line, chunk.offset)):
                    return chain(held, chunks)
                lines.append(line)
            if len(lines) == CHECKED_LINES or chunk.end >= CHECKED_BYTES:
                break
        if not lines:
            return chain(held, chunks)
        reason = (
            f"none of its first {len(lines):,} lines is an event" if len(lines) > 1 else "its only line is not an event"
        )
        raise FileError(
            f"{path} was not loaded: {reason}. {describe_lines(lines, export=entrance != FILE)} --no-check loads the "
            "file, and such lines go to quarantine."
        )

    def _find_known(self, head: bytes) -> list[_Load]:
        with self._connection.cursor(row_factory=class_row(_Load)) as cursor:
            return cursor.execute(_KNOWN, (self._source, head)).fetchall()

    def _recognise(self, path: str, known: Sequence[_Load]) -> tuple[_Load | None, bool]:
        """Return the load that this file continues, if any, and whether the file is unchanged since that load."""
        if not known:
            return None, False
        positions = {load.byte_offset for load in known} | {load.size for load in known if load.size is not None}
        with self._open(path) as (stream, _):
            digests, end = digests_at(stream, positions)
        for load in known:
            if load.size is not None and load.size == end and digests[end] == load.content_digest:
                return load, True
        for load in known:
            grown = load.size and digests.get(load.size) == load.content_digest
            if grown or (load.byte_offset and digests.get(load.byte_offset) == load.digest):
                return load, False
        return None, False

    @contextmanager
    def _keep_others_away(self, path: str, head: bytes) -> Iterator[None]:
        """Hold a lock on files with the same beginning, so that two loaders do not land one file twice."""
        if self._guard is None:
            self._guard = connect(self._url)
        key = int.from_bytes(hashlib.sha256(self._source.encode() + head).digest()[:8], signed=True)
        # The lock belongs to the transaction, because a lock of a session would survive in a pooler's connection.
        self._guard.execute(NO_TIMEOUTS)
        self._guard.execute("set local lock_timeout = 0")
        taken = self._guard.execute("select pg_try_advisory_xact_lock(%s)", (key,)).fetchone()
        if taken != (True,):
            logger.warning("waiting for another loader, which loads %s or a file with the same beginning", path)
            self._guard.execute("select pg_advisory_xact_lock(%s)", (key,))
        try:
            yield
        finally:
            # A lost connection has released its lock.
            with suppress(psycopg.Error):
                self._guard.rollback()

    def _start(self, path: str, head: bytes, position: int, digest: bytes) -> int:
        """Insert a row in raw.loads for the rest of a file, and return its number."""
        row = self._connection.execute(_START, (self._source, printable(path), head, position, digest)).fetchone()
        assert row is not None  # noqa: S101 - an insert that returns
        return int(row[0])

    def _continue(self, reader: LineReader, path: str, head: bytes, load: _Load) -> int:
        """Skip the lines of an earlier load, and return the number of the row for the rest of the file."""
        reader.skip(load.byte_offset)
        if reader.digest != load.digest:
            raise FileError(f"{path} changed while it was read. Run the command again.")
        if load.size is None or load.content_digest is None:
            return load.id
        with self._connection.transaction():
            if not reader.skip_ended_line(load.size, load.content_digest):
                length = load.size - load.byte_offset
                entrance = self._entrance(path)
                self._connection.execute(_SUPERSEDE, (self._source, load.path, load.byte_offset, length, entrance))
            return self._start(path, head, reader.position, reader.digest)

    def _stop_workers(self) -> None:
        if self._workers:
            self._workers.close()
            self._workers = None


def _lines(path: str, chunk: Chunk, most: int) -> list[bytes]:
    """Return the lines that are not blank among the first lines of a chunk; an overlong line is cut."""
    parts = read_chunk(path, chunk).split(b"\n", most)[:most]
    return [line for line in parts if line.strip()]


def _size(path: str) -> int:
    try:
        return 0 if path == STANDARD_INPUT else Path(path).stat().st_size
    except OSError:
        return 0
