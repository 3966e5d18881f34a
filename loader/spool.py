"""Keeps messages on the local disk while the database cannot take them, in the order in which they came.

A spool is a folder of segment files that only grow. Each append is one record and one fsync; a record carries its
length and checksum, so what a power cut leaves of the last one is told apart from what was written whole. How far a
segment has been drained is not kept here but in the database, in the transaction of its rows: nothing lands twice.

Every process writes a segment of its own, which it holds locked. What a process leaves behind when it ends is adopted
by the next one that looks.
"""

import errno
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
        last: Nothing follows them so far.
    """

    segment: str
    offset: int
    end: int
    deliveries: list[Delivery]
    last: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Delivery]).decode


class _Segment:
    """One file, locked for as long as it is open."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(self.file)
        except BaseException:
            os.close(self.file)
            raise
        if not found.st_nlink:
            # Whoever had it until now has deleted it: what is written there would be gone with this process.
            os.close(self.file)
            raise FileNotFoundError(errno.ENOENT, "Somebody has deleted it", str(path))
        self.size = found.st_size

    def close(self) -> None:
        os.close(self.file)

    def delete(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()


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
        self._positions: dict[str, int] = {}
        self._writable: _Segment | None = None
        self._reported: set[Path] = set()

    @property
    def size(self) -> int:
        """Bytes that wait to be drained."""
        return sum(segment.size - self._position(segment) for segment in self._segments)

    def adopt(self) -> int:
        """Take over what processes that are gone have left, before anything of this process's own.

        Returns:
            How many segments were taken over.
        """
        held = {segment.path for segment in self._segments}
        adopted = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if path not in held:
                try:
                    adopted.append(_Segment(path))
                except OSError:  # somebody else's, or gone
                    continue
        self._segments = deque(sorted([*self._segments, *adopted], key=lambda segment: segment.path))
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
        if not self._limit:
            raise SpoolError("There is no spool: LOADER_SPOOL_BYTES is 0.")
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
                if segment.size:
                    os.ftruncate(segment.file, segment.size)
                else:
                    self._segments.remove(segment)
                    segment.delete()
                raise
        except OSError as error:
            raise SpoolError(f"The spool in {self._folder} cannot be written: {error.strerror}.") from None
        segment.size += len(record)

    def resume(self, positions: dict[str, int]) -> None:
        """Go by what the database says of how far segments have been drained, by their names."""
        self._positions = dict(positions)

    def next_part(self, size: int) -> Part | None:
        """Return the first deliveries that are not drained yet.

        Args:
            size: Bytes of deliveries to return at least, as far as the segment has them.

        Returns:
            The deliveries; None when nothing is left.
        """
        while self._segments:
            segment = self._segments[0]
            start = end = self._position(segment)
            deliveries: list[Delivery] = []
            for end, found in self._records(segment, start):
                deliveries += found
                # What is passed over is no part of its own, however large it is: good records may follow it.
                if deliveries and end - start >= size:
                    break
            if deliveries:
                last = end == segment.size and len(self._segments) == 1
                return Part(segment.path.name, start, end, deliveries, last)
            self._delete(segment)
        return None

    def drained(self, part: Part) -> None:
        """Remember that a part is in the database."""
        self._positions[part.segment] = part.end

    def close(self) -> None:
        """Let go of the segments; what is not drained stays for the next process."""
        while self._segments:
            self._segments.popleft().close()
        self._writable = None

    def _position(self, segment: _Segment) -> int:
        """Return how far a segment has been drained."""
        return min(self._positions.get(segment.path.name, 0), segment.size)

    def _segment(self) -> _Segment:
        """Return the segment to write to."""
        if self._writable is None or self._writable.size >= self._segment_bytes:
            if not self._folder.is_dir():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync_folder(self._folder.parent)
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
            segment = _Segment(self._folder / name, os.O_CREAT | os.O_EXCL)
            try:
                _sync_folder(self._folder)
            except OSError:
                segment.delete()
                raise
            self._segments.append(segment)
            self._writable = segment
        return self._writable

    def _delete(self, segment: _Segment) -> None:
        self._segments.popleft()
        if segment is self._writable:
            self._writable = None
        segment.delete()

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
        # One file for each piece, so that a piece found again, by another process too, is kept once.
        aside = segment.path.with_name(f"{segment.path.stem}-{start}{_DAMAGED}")
        if aside in self._reported:
            return
        aside.touch(0o600)
        with aside.open("wb") as file:
            file.write(os.pread(segment.file, end - start, start))
            file.flush()
            os.fsync(file.fileno())
        self._reported.add(aside)
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
