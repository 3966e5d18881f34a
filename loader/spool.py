"""Keeps messages on the local disk while the database cannot take them, in the order in which they came.

A spool is a folder of segment files that only grow. Each append is one record and one fsync; a record carries its
length and checksum, so what a power cut leaves of the last one is told apart from what was written whole. How far a
segment has been drained is not kept here but in the database, in the transaction of its rows: nothing lands twice.

Every process writes a segment of its own, which it holds locked. What a process leaves behind when it ends is adopted
by the next one that looks.
"""

import fcntl
import os
import time
import uuid
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import msgspec
import structlog

from loader.errors import SpoolError
from loader.events import Delivery

# A segment is deleted whole, so its size is what a spool keeps of what it has drained.
SEGMENT_BYTES = 64_000_000

# Of a record: what it begins with, the length of what follows, its checksum.
_HEADER = Struct(">4sII")
_MAGIC = b"IWSP"
_SUFFIX = ".spool"
_DAMAGED = ".damaged"

log = structlog.get_logger("loader")


@dataclass(frozen=True)
class Part:
    """Some deliveries of a segment.

    Attributes:
        segment: The segment's name.
        offset: Where they begin in it.
        end: Where the next ones begin.
        deliveries: The deliveries.
    """

    segment: str
    offset: int
    end: int
    deliveries: list[Delivery]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Delivery]).decode


class _Segment:
    """One file, locked for as long as it is open."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.size = os.fstat(self.file).st_size
        except BaseException:
            os.close(self.file)
            raise

    def close(self) -> None:
        os.close(self.file)


class Spool:
    """The spool of one process. Not for use from several threads at once.

    Args:
        folder: Where the segments lie; made when it is not there.
        limit: Bytes that may wait in it; 0 for no spool at all.
        segment_bytes: Size at which a new segment begins.
    """

    def __init__(self, folder: Path, limit: int, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._limit = limit
        self._segment_bytes = segment_bytes
        self._segments: deque[_Segment] = deque()
        self._position: int | None = None
        self._writable: _Segment | None = None
        self._reported: set[tuple[Path, int]] = set()

    @property
    def size(self) -> int:
        """Bytes that wait to be drained."""
        return sum(segment.size for segment in self._segments) - (self._position or 0)

    def adopt(self) -> int:
        """Take over what processes that are gone have left, before anything of this process's own.

        Returns:
            How many segments were taken over.
        """
        held = {segment.path for segment in self._segments}
        adopted = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")) if self._limit else []:
            if path not in held:
                try:
                    adopted.append(_Segment(path))
                except OSError:  # somebody else's, or gone
                    continue
        first = self._segments[0] if self._segments else None
        self._segments = deque(sorted([*self._segments, *adopted], key=lambda segment: segment.path))
        if self._segments and self._segments[0] is not first:
            self._position = None
        return len(adopted)

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Write deliveries to the disk; they are safe there when this returns.

        Args:
            deliveries: The deliveries, in their order.

        Raises:
            SpoolError: There is no room, or the disk does not take them. Nothing is kept of them.
        """
        body = _encode(deliveries)
        record = _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body
        if self.size + len(record) > self._limit:
            raise SpoolError(
                f"The spool in {self._folder} is full ({self.size:,} of {self._limit:,} bytes). It empties when the "
                "database is back; LOADER_SPOOL_BYTES sets its size."
            )
        try:
            segment = self._segment()
            try:
                _write(segment.file, record, segment.size)
                os.fsync(segment.file)
            except OSError:
                # Whatever of it got there must not be taken for a record, and what the disk did not take once it may
                # not have taken at all: this segment ends here.
                self._writable = None
                os.ftruncate(segment.file, segment.size)
                raise
        except OSError as error:
            raise SpoolError(f"The spool in {self._folder} cannot be written: {error.strerror}.") from None
        segment.size += len(record)

    def probe(self) -> None:
        """Find out whether something could be appended.

        Raises:
            SpoolError: It could not.
        """
        self.append([])

    def next_part(self, start: dict[str, int], size: int) -> Part | None:
        """Return the first deliveries that are not drained yet.

        Args:
            start: How far segments have been drained already, by their names.
            size: Bytes of deliveries to return at least, as far as the segment has them.

        Returns:
            The deliveries; None when nothing is left.
        """
        while self._segments:
            segment = self._segments[0]
            if self._position is None:
                self._position = min(start.get(segment.path.name, 0), segment.size)
            deliveries: list[Delivery] = []
            end = self._position
            for end, found in self._records(segment, self._position):
                deliveries += found
                if end - self._position >= size:
                    break
            if deliveries:
                return Part(segment.path.name, self._position, end, deliveries)
            self._position = None
            self._delete(segment)
        return None

    def drained(self, part: Part) -> None:
        """Remember that a part is in the database."""
        self._position = part.end

    def close(self) -> None:
        """Let go of the segments; what is not drained stays for the next process."""
        while self._segments:
            self._segments.popleft().close()
        self._writable = None

    def _segment(self) -> _Segment:
        """Return the segment to write to."""
        if self._writable is None or self._writable.size >= self._segment_bytes:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
            self._writable = _Segment(self._folder / name, os.O_CREAT | os.O_EXCL)
            self._segments.append(self._writable)
            _sync_folder(self._folder)
        return self._writable

    def _delete(self, segment: _Segment) -> None:
        self._segments.popleft()
        if segment is self._writable:
            self._writable = None
        segment.path.unlink(missing_ok=True)
        segment.close()

    def _records(self, segment: _Segment, position: int) -> Iterator[tuple[int, list[Delivery]]]:
        """Yield where each whole record ends and what it holds; what is damaged is reported and kept aside."""
        while position < segment.size:
            read = _read_record(segment, position)
            if read is None:
                following = _next_record(segment, position + 1)
                self._report(segment, position, following)
                # Passed over for good, also when nothing follows it.
                yield following, []
                position = following
                continue
            position, deliveries = read
            yield position, deliveries

    def _report(self, segment: _Segment, start: int, end: int) -> None:
        if (segment.path, start) in self._reported:
            return
        self._reported.add((segment.path, start))
        aside = segment.path.with_suffix(_DAMAGED)
        with aside.open("ab") as file:
            file.write(os.pread(segment.file, end - start, start))
        log.error(
            "part of the spool is damaged and cannot be landed; it is kept aside",
            segment=str(segment.path),
            offset=start,
            bytes=end - start,
            kept_in=str(aside),
        )


def _read_record(segment: _Segment, position: int) -> tuple[int, list[Delivery]] | None:
    """Return where a record ends and what it holds; None when there is no whole one."""
    header = os.pread(segment.file, _HEADER.size, position)
    if len(header) < _HEADER.size:
        return None
    magic, length, checksum = _HEADER.unpack(header)
    end = position + _HEADER.size + length
    if magic != _MAGIC or end > segment.size:
        return None
    body = os.pread(segment.file, length, position + _HEADER.size)
    if zlib.crc32(body) != checksum:
        return None
    try:
        return end, _decode(body)
    except msgspec.MsgspecError:
        return None


def _next_record(segment: _Segment, position: int) -> int:
    """Return where the next whole record begins; the segment's end when there is none."""
    rest = os.pread(segment.file, segment.size - position, position)
    found = rest.find(_MAGIC)
    while found >= 0:
        if _read_record(segment, position + found):
            return position + found
        found = rest.find(_MAGIC, found + 1)
    return segment.size


def _write(file: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view = view[written:]
        position += written


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as what is in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
