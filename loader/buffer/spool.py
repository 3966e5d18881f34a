"""Keeps deliveries on the local disk, in the order of their arrival, while the database cannot take them.

A spool is a folder of segment files that only grow (`spool_segment.py`). Each append is one record and one fsync.

Each process writes to a segment of its own and holds a lock on that segment. The next process that looks into the
folder adopts the segments of ended processes. Segments of another warehouse are left alone.
"""

import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from loader.buffer.spool_segment import RECORD_BYTES, Segment, encode, segment_files, warehouse_of
from loader.errors import SpoolError
from loader.events.model import Delivery
from loader.postgres.warehouse import Warehouse
from loader.runtime import metrics

# Size at which a new segment begins. Only whole segments are deleted, so replayed events may occupy this much disk.
SEGMENT_BYTES = 64_000_000

# How long a spool counts as broken after an append has failed.
_BROKEN_SECONDS = 5.0

# The text that `loader spool list` shows for a segment whose warehouse is unknown: an earlier version wrote the segment
# and recorded no warehouse, or the file was renamed.
_OWNERS = {"": "not recorded", None: "renamed file"}

log = structlog.get_logger("loader")


@dataclass(frozen=True)
class Part:
    """Consecutive deliveries of a segment, which land in one transaction.

    Attributes:
        segment: The segment's name.
        offset: The position in the segment at which the part begins.
        end: The position at which the next part begins.
        last: Whether this part is the last part of the spool so far.
    """

    segment: str
    offset: int
    end: int
    deliveries: list[Delivery]
    last: bool


@dataclass(frozen=True)
class SegmentListed:
    """A segment of the spool, as `loader spool list` shows it."""

    segment: str
    last_written: datetime
    bytes: int
    warehouse: str
    foreign: bool


class Spool:
    """The spool of one process; must not be used by several threads at once.

    Args:
        folder: The folder of the segments; the first write creates the folder if it is missing.
        limit: Bytes that may wait in the spool; 0 disables the spool.
        warehouse: The warehouse that new segments belong to; an unknown warehouse by default.
        segment_bytes: Size at which a new segment begins.
    """

    def __init__(
        self, folder: Path, limit: int, warehouse: Warehouse | None = None, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder = folder
        self._limit = limit
        self._warehouse = warehouse or Warehouse()
        self._segment_bytes = segment_bytes
        self._segments: deque[Segment] = deque()
        self._positions: dict[str, int] = {}
        self._writable: Segment | None = None
        # The id of the warehouse that the spool is replayed into; empty while the id is unknown.
        self._into = ""
        self._told: set[Path] = set()
        self._broken_until = float("-inf")

    @property
    def size(self) -> int:
        """Bytes that wait to be replayed."""
        return sum(segment.size - self._position(segment) for segment in self._segments)

    def adopt(self, warehouse: str = "") -> int:
        """Adopt the segments of ended processes, and release the segments of other warehouses.

        Segments are replayed in the order in which they were begun, so segments of ended processes come first.

        Args:
            warehouse: The id of the warehouse to replay into. While the id is unknown, all segments are adopted.

        Returns:
            The number of adopted segments.
        """
        self._into = warehouse
        for segment in [each for each in self._segments if not self._is_own(each.warehouse)]:
            self._let_go(segment)
        adopted = 0
        held = {segment.path for segment in self._segments}
        for path in segment_files(self._folder):
            if path not in held and self._is_own(warehouse_of(path)):
                with suppress(OSError):  # another process holds the segment, or has deleted it
                    self._segments.append(Segment(path))
                    adopted += 1
        self._segments = deque(sorted(self._segments, key=lambda segment: segment.path))
        if warehouse:
            self._tell_foreign(warehouse)
        return adopted

    def take(self, name: str) -> None:
        """Adopt one segment of any warehouse, by its name.

        Raises:
            SpoolError: There is no such segment, or a process holds the segment.
        """
        path = self._folder / name
        if path not in segment_files(self._folder):
            raise SpoolError(f"There is no segment {name} in {self._folder}. `loader spool list` shows the segments.")
        try:
            self._segments.append(Segment(path))
        except OSError:
            raise SpoolError(
                f"Segment {name} is held by a collector, which replays the segment without a command."
            ) from None

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Write deliveries to the disk; the deliveries are durable when this method returns.

        Raises:
            SpoolError: There is no room, or the disk does not take the deliveries. The spool then keeps none of them.
        """
        body = encode(deliveries)
        self._check_limit(len(body))
        try:
            segment = self._segment()
            try:
                segment.append(body)
            except OSError:
                # After a failed write, the state of the file on the disk is uncertain. So the next append begins a new
                # segment.
                self._writable = None
                if not segment.size:
                    self._forget(segment)
                    segment.delete()
                raise
        except OSError as error:
            self._broken_until = time.monotonic() + _BROKEN_SECONDS
            raise self._unwritable(error.strerror) from None
        self._broken_until = float("-inf")

    def check_room(self) -> None:
        """Raise a `SpoolError` unless deliveries could be written; nothing is written to the disk."""
        self._check_limit(0)
        if time.monotonic() < self._broken_until:
            raise self._unwritable("the last attempt has failed")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk = os.statvfs(self._folder)
        except OSError as error:
            raise self._unwritable(error.strerror) from None
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise self._unwritable("this process may not write to the folder")
        if not disk.f_bavail:
            raise self._unwritable("the disk is full")

    def resume(self, positions: dict[str, int]) -> None:
        """Continue from the positions that the database keeps for the names of segments."""
        self._positions = dict(positions)

    def next_part(self, size: int) -> Part | None:
        """Return the first deliveries that have not been replayed; delete segments without such deliveries.

        Args:
            size: The part has at least this many bytes, unless the segment ends earlier.

        Returns:
            The deliveries; None when the spool is empty.
        """
        while self._segments:
            segment = self._segments[0]
            if not self._is_own(segment.warehouse):
                # This process began the segment while it was connected to another warehouse.
                self._let_go(segment)
                self._tell_foreign(self._into)
                continue
            start = end = self._position(segment)
            deliveries: list[Delivery] = []
            for end, found in segment.records(start):
                deliveries += found
                # A damaged piece of any size never makes a part of its own, because whole records may follow.
                if deliveries and end - start >= size:
                    break
            if deliveries:
                last = end == segment.size and len(self._segments) == 1
                return Part(segment.path.name, start, end, deliveries, last)
            self._forget(segment)
            segment.delete()
        return None

    def mark_committed(self, part: Part) -> None:
        """Record that a part has been committed to the database."""
        self._positions[part.segment] = part.end

    def close(self) -> None:
        """Release all segments; deliveries that have not been replayed stay for the next process."""
        while self._segments:
            self._segments.popleft().close()
        self._writable = None

    def _is_own(self, warehouse: str | None) -> bool:
        """Return whether this process replays the segments of a warehouse; None stands for a renamed file."""
        return warehouse is not None and (not self._into or warehouse in {"", self._into})

    def _let_go(self, segment: Segment) -> None:
        self._forget(segment)
        segment.close()

    def _forget(self, segment: Segment) -> None:
        self._segments.remove(segment)
        if segment is self._writable:
            self._writable = None

    def _tell_foreign(self, warehouse: str) -> None:
        for path in count_foreign(self._folder, warehouse):
            if path not in self._told:
                self._told.add(path)
                log.warning(
                    "a segment of the spool belongs to another warehouse and is not landed; see `loader spool list`",
                    segment=str(path),
                    belongs_to=warehouse_of(path),
                    warehouse=warehouse,
                )

    def _check_limit(self, size: int) -> None:
        """Raise a `SpoolError` unless the spool has room for a record with a body of `size` bytes."""
        if not self._limit:
            raise SpoolError("There is no spool: LOADER_SPOOL_BYTES is 0.")
        if self.size + RECORD_BYTES + size > self._limit:
            raise SpoolError(
                f"The spool in {self._folder} is full ({self.size:,} of {self._limit:,} bytes). The collector "
                "empties the spool when the database is back. LOADER_SPOOL_BYTES limits the size of the spool."
            )

    def _unwritable(self, reason: str | None) -> SpoolError:
        return SpoolError(f"The spool in {self._folder} cannot be written: {reason}.")

    def _position(self, segment: Segment) -> int:
        return min(self._positions.get(segment.path.name, 0), segment.size)

    def _segment(self) -> Segment:
        """Return the segment to append to; begin a segment if the last is missing, full or of another warehouse."""
        warehouse = self._warehouse.id
        writable = self._writable
        if writable is None or writable.size >= self._segment_bytes or writable.warehouse != warehouse:
            if not self._folder.is_dir():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync_folder(self._folder.parent)
            segment = Segment.create(self._folder, warehouse)
            try:
                _sync_folder(self._folder)
            except OSError:
                segment.delete()
                raise
            self._segments.append(segment)
            self._writable = writable = segment
        return writable


def list_segments(folder: Path, warehouse: str) -> list[SegmentListed]:
    """Return the segments of a spool, the oldest first, for the warehouse in use."""
    listed = []
    for path in segment_files(folder):
        owner = warehouse_of(path)
        try:
            found = path.stat()
        except FileNotFoundError:  # a process has replayed and deleted the segment meanwhile
            continue
        listed.append(
            SegmentListed(
                segment=path.name,
                last_written=datetime.fromtimestamp(found.st_mtime, UTC),
                bytes=found.st_size,
                warehouse="this one" if owner == warehouse else _OWNERS.get(owner, owner or ""),
                foreign=owner not in {"", warehouse},
            )
        )
    return listed


def count_foreign(folder: Path, warehouse: str) -> list[Path]:
    """Return the segments of other warehouses, the oldest first, and count their bytes for the metrics.

    Args:
        folder: The spool's folder.
        warehouse: The id of the warehouse in use. With an empty id, no segment counts as one of another warehouse.
    """
    foreign = [path for path in segment_files(folder) if warehouse and warehouse_of(path) not in {"", warehouse}]
    size = 0
    for path in foreign:
        with suppress(OSError):
            size += path.stat().st_size
    metrics.foreign_spool_bytes.set(size)
    return foreign


def _sync_folder(folder: Path) -> None:
    """Sync a folder to the disk, so that the names of new files in it are durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
