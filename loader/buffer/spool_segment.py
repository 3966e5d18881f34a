"""Reads and writes one segment of a spool: a file of records that only grows.

The name of a segment has the time of its beginning, its nonce, and the id of the warehouse whose write keys admitted
its events. A record is the nonce, the length of the body, a checksum of the body, and the body. The checksum has the
nonce as its key. Senders do not know the nonce, so bytes of a sender cannot pass for a record.

Segments of earlier versions have neither a nonce nor a warehouse. They are read as well.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

import msgspec
import structlog

from loader.errors import SpoolError
from loader.events.model import Delivery

_SUFFIX = ".segment"
_OLD_SUFFIX = ".spool"
_DAMAGED = ".damaged"

_NAME = re.compile(r"\d{20}-([0-9a-f]{32})-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|unknown)\.segment")
_UNKNOWN = "unknown"
_NONCE_BYTES = 16

_HEADER = Struct(">16sI16s")
_OLD_HEADER = Struct(">4sII")
_OLD_MARK = b"IWSP"

# Bytes that a record has besides its body.
RECORD_BYTES = _HEADER.size

log = structlog.get_logger("loader")

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Delivery]).decode


def segment_files(folder: Path) -> list[Path]:
    """Return the paths of a folder's segments, the oldest first."""
    return sorted([*folder.glob(f"*{_SUFFIX}"), *folder.glob(f"*{_OLD_SUFFIX}")])


def warehouse_of(path: Path) -> str | None:
    """Return the id of a segment's warehouse: empty without an id, None if the file has not the name of a segment."""
    if path.suffix == _OLD_SUFFIX:
        return ""
    found = _NAME.fullmatch(path.name)
    return None if found is None else found[2].removeprefix(_UNKNOWN)


class Segment:
    """One segment's file, which is locked as long as it is open.

    Args:
        path: The file.
        flags: Further flags for opening the file.

    Attributes:
        warehouse: The id of the warehouse that the segment belongs to; empty when the segment has no id.
        size: Bytes of the file.

    Raises:
        SpoolError: The file's name is not the name of a segment.
        OSError: Another process holds the file, or the file cannot be opened.
    """

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.path = path
        warehouse = warehouse_of(path)
        if warehouse is None:
            raise SpoolError(
                f"{path} was renamed, and its checksums depend on its name. Give the file its former name again."
            )
        self.warehouse = warehouse
        self._is_old = path.suffix == _OLD_SUFFIX
        self._mark = _OLD_MARK if self._is_old else bytes.fromhex(path.name.split("-")[1])
        self._header = _OLD_HEADER if self._is_old else _HEADER
        self._reported: set[int] = set()
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(self.file)
        except BaseException:
            os.close(self.file)
            raise
        if not found.st_nlink:
            # The previous holder has deleted the file. Records written to the file would be lost with this process.
            os.close(self.file)
            raise FileNotFoundError(errno.ENOENT, "The previous owner has deleted the segment", str(path))
        self.size = found.st_size

    @classmethod
    def create(cls, folder: Path, warehouse: str) -> "Segment":
        """Begin a segment of a warehouse; the id is empty when the warehouse is unknown."""
        name = f"{time.time_ns():020d}-{secrets.token_hex(_NONCE_BYTES)}-{warehouse or _UNKNOWN}{_SUFFIX}"
        return cls(folder / name, os.O_CREAT | os.O_EXCL)

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self.file)

    def delete(self) -> None:
        """Delete the file and release its lock."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def append(self, body: bytes) -> None:
        """Write deliveries, as `encode` returns them, to the disk; they are durable when this method returns.

        Raises:
            OSError: The disk does not take the record. The segment is unchanged.
        """
        record = self._header.pack(self._mark, len(body), self._checksum(body)) + body
        try:
            _write(self.file, record, self.size)
            os.fsync(self.file)
        except OSError:
            # A partly written record must not stay in the file.
            os.ftruncate(self.file, self.size)
            raise
        self.size += len(record)

    def records(self, position: int) -> Iterator[tuple[int, list[Delivery]]]:
        """Yield each whole record from a position on; log damaged pieces and copy them to files beside the segment.

        Yields:
            The position at which the record ends, and its deliveries. A damaged piece has no deliveries.
        """
        while position < self.size:
            # The caller moves past a damaged piece, even if no record follows.
            read = self._read(position)
            end, deliveries = read or (self._next(position + 1), [])
            if read is None:
                self._report(position, end)
            yield end, deliveries
            position = end

    def _checksum(self, body: bytes) -> bytes | int:
        if self._is_old:
            return zlib.crc32(body)
        return hashlib.blake2b(body, key=self._mark, digest_size=16).digest()

    def _read(self, position: int) -> tuple[int, list[Delivery]] | None:
        """Return the end of the record at a position and its deliveries; None if there is no whole record."""
        header = os.pread(self.file, self._header.size, position)
        if len(header) < self._header.size:
            return None
        mark, length, checksum = self._header.unpack(header)
        end = position + self._header.size + length
        if mark != self._mark or end > self.size:
            return None
        body = os.pread(self.file, length, position + self._header.size)
        if self._checksum(body) != checksum:
            return None
        try:
            return end, _decode(body)
        except msgspec.MsgspecError:
            return None

    def _next(self, position: int) -> int:
        """Return the position of the next whole record; the segment's end if there is no such record."""
        rest = os.pread(self.file, self.size - position, position)
        found = rest.find(self._mark)
        while found >= 0:
            if self._read(position + found):
                return position + found
            found = rest.find(self._mark, found + 1)
        return self.size

    def _report(self, start: int, end: int) -> None:
        # Each piece has a file of its own, named by its position. So a piece that is found again, even by another
        # process, is kept once.
        if start in self._reported:
            return
        aside = self.path.with_name(f"{self.path.stem}-{start}{_DAMAGED}")
        aside.touch(0o600)
        with aside.open("wb") as file:
            file.write(os.pread(self.file, end - start, start))
            file.flush()
            os.fsync(file.fileno())
        self._reported.add(start)
        log.error(
            "part of the spool is damaged and cannot land; the damaged bytes are kept in another file",
            segment=str(self.path),
            offset=start,
            bytes=end - start,
            kept_in=str(aside),
        )


def _write(file: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view = view[written:]
        position += written
