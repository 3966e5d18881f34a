"""Reads the lines of a file in chunks; each chunk lands in one transaction.

Offsets count bytes of the decompressed stream, so an offset is valid for a file and for its compressed copies.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loader.errors import FileError
from loader.files.streams import DAMAGE, READ_BYTES

# One transaction lands a chunk. The size keeps the share of the commit small, and the chunk fits into memory.
CHUNK_BYTES = 4_000_000

# A longer line is not an event, but a file without newlines. Its content stays in the file.
LINE_BYTES = 16_000_000

# The quarantine keeps this many bytes of an overlong line.
KEPT_BYTES = 100_000


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file.

    Attributes:
        data: The lines with their newlines; the file's last line may have none. None if `read_chunk` reads the lines
            from the uncompressed file.
        length: Number of bytes of the lines.
        offset: Offset of the first line.
        end: Offset at which the next load continues. This is the end of the lines, or the beginning of a last line
            without a newline, which may be incomplete.
        digest: SHA-256 of everything before `end`.
        truncated: Bytes of an overlong line that are not in `data`, which contains the beginning of the line.
        content_digest: SHA-256 of the whole file, if the chunk is a last line without a newline; None otherwise.
    """

    data: bytes | None
    length: int
    offset: int
    end: int
    digest: bytes
    truncated: int = 0
    content_digest: bytes | None = None

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, if the chunk is a last line without a newline; None otherwise."""
        return None if self.content_digest is None else self.offset + self.length + self.truncated


def read_chunk(path: str, chunk: Chunk) -> bytes:
    """Return the lines of a chunk, from memory or from the file.

    Args:
        path: The file.
        chunk: The chunk.

    Raises:
        FileError: The file cannot be read any more.
    """
    if chunk.data is not None:
        return chunk.data
    try:
        with Path(path).open("rb", buffering=0) as file:
            file.seek(chunk.offset)
            data = file.read(chunk.length)
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror}.") from None
    if len(data) != chunk.length:
        raise FileError(f"{path} became shorter while it was read. Run the command again.")
    return data


class LineReader:
    """Reads a stream of lines in chunks, and computes the digest of everything before its position.

    Args:
        stream: The decompressed bytes, at the beginning.
        path: The file's name, for messages.
        chunk_bytes: Size of a chunk in bytes.
        line_bytes: Length in bytes above which a line is left out.
        with_data: Whether chunks contain their lines. Without the lines, the workers read the uncompressed file
            again, which costs less than sending the lines to another process.

    Attributes:
        damage: The defect of a compressed file that could not be read to its end; empty without a defect.
        size: Bytes of the whole file, after the last chunk.
        content_digest: SHA-256 of the whole file, after the last chunk.
    """

    def __init__(
        self,
        stream: io.BufferedReader,
        path: str,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        line_bytes: int = LINE_BYTES,
        with_data: bool = True,
    ) -> None:
        self._stream = stream
        self._path = path
        self._chunk_bytes = chunk_bytes
        self._line_bytes = max(line_bytes, chunk_bytes)
        self._with_data = with_data
        self._digest = hashlib.sha256()
        self._position = 0
        self._buffer = bytearray(chunk_bytes)
        self._filled = 0
        self._at_end = False
        self.damage = ""
        self.content_digest = b""
        self.size = 0

    @property
    def position(self) -> int:
        """Offset of the next chunk."""
        return self._position

    @property
    def digest(self) -> bytes:
        """SHA-256 of everything before the next chunk."""
        return self._digest.digest()

    def skip(self, offset: int) -> None:
        """Skip everything before an offset at which a line begins.

        Args:
            offset: The offset in bytes.

        Raises:
            FileError: The file ends before the offset.
        """
        while self._position < offset:
            try:
                data = self._stream.read(min(READ_BYTES, offset - self._position))
            except DAMAGE:
                data = b""
            if not data:
                raise FileError(f"{self._path} became shorter while it was read. Run the command again.")
            self._digest.update(data)
            self._position += len(data)

    def skip_ended_line(self, size: int, content_digest: bytes) -> bool:
        """Skip a line that was the file's last line, without a newline, when the whole file had landed.

        Args:
            size: Bytes of the file at that time.
            content_digest: SHA-256 of the file at that time.

        Returns:
            Whether the line was skipped. A line that has since grown by more than white space is not skipped.
        """
        length = size - self._position
        if not 0 < length <= self._chunk_bytes:
            return False
        self._fill()
        content = self._digest.copy()
        content.update(self._buffer[:length])
        if self._filled < length or content.digest() != content_digest:
            return False
        newline = self._buffer.find(b"\n", length, self._filled)
        end = newline + 1 if newline >= 0 else self._filled
        if self._buffer[length:end].strip():
            return False
        self._pass(end)
        return True

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rest of the file in chunks.

        A compressed file that is cut short or damaged yields its readable part, and `damage` describes the defect.

        Raises:
            FileError: The file cannot be read any more.
        """
        self._at_end = False
        while not self._at_end:
            self._fill()
            cut = self._buffer.rfind(b"\n", 0, self._filled) + 1
            if cut:
                data = bytes(self._buffer[:cut]) if self._with_data else None
                offset = self._pass(cut)
                yield Chunk(data, cut, offset, self._position, self.digest)
            elif not self._at_end and len(self._buffer) < self._line_bytes:
                self._buffer.extend(bytes(min(len(self._buffer), self._line_bytes - len(self._buffer))))
            elif not self._at_end:
                yield from self._overlong()
        if self._filled:
            rest, before = bytes(self._buffer[: self._filled]), self.digest
            offset = self._pass(self._filled)
            yield from self._last_line(rest, offset, before)
        self.size = self._position
        self.content_digest = self.digest

    def _overlong(self) -> Iterator[Chunk]:
        """Skip a line that is too long for an event, and yield a chunk with its beginning."""
        kept, before = bytes(self._buffer[:KEPT_BYTES]), self.digest
        offset = self._pass(self._filled)
        cut = 0
        while not (cut or self._at_end):
            self._fill()
            cut = self._buffer.find(b"\n", 0, self._filled) + 1
            self._pass(cut or self._filled)
        if cut:
            left_out = self._position - offset - len(kept)
            yield Chunk(kept, len(kept), offset, self._position, self.digest, left_out)
            self._at_end = False
        else:
            yield from self._last_line(kept, offset, before)

    def _last_line(self, kept: bytes, offset: int, before: bytes) -> Iterator[Chunk]:
        """Yield a chunk with the last line, which has no newline and has been skipped.

        Another program may still be writing the line, so the file counts as read up to the line's beginning. In a
        damaged file, these bytes are not a line.
        """
        if not self.damage:
            left_out = self._position - offset - len(kept)
            yield Chunk(kept, len(kept), offset, offset, before, left_out, self.digest)

    def _pass(self, length: int) -> int:
        """Remove the first bytes from the buffer, and return the offset at which they began."""
        offset = self._position
        with memoryview(self._buffer) as view:
            self._digest.update(view[:length])
            rest = bytes(view[length : self._filled])
        self._position += length
        self._filled = len(rest)
        if len(self._buffer) > self._chunk_bytes >= len(rest):
            self._buffer = bytearray(self._chunk_bytes)
        self._buffer[: len(rest)] = rest
        return offset

    def _fill(self) -> None:
        """Fill the buffer up to its size or to the end of the file; bytes before a defect are kept."""
        with memoryview(self._buffer) as view:
            while not self.damage and self._filled < len(view):
                try:
                    # A larger request would read past the stream's buffer, and a later defect would lose these bytes.
                    count = self._stream.readinto1(view[self._filled : self._filled + READ_BYTES])
                except DAMAGE as error:
                    self.damage = str(error)
                    break
                except OSError as error:
                    raise FileError(f"Cannot read {self._path}: {error.strerror or error}.") from None
                if not count:
                    self._at_end = True
                    return
                self._filled += count
        self._at_end = bool(self.damage)


def digests_at(stream: io.BufferedReader, positions: Iterable[int]) -> tuple[dict[int, bytes], int | None]:
    """Compute the digests of a stream's beginnings, up to the last of some positions.

    Args:
        stream: The decompressed bytes, at the beginning.
        positions: Offsets in bytes, in any order.

    Returns:
        SHA-256 of everything before each position that the stream reaches, and before its end if it was reached. The
        second value is the offset of the end, or None if the stream continues after the last position.
    """
    digest = hashlib.sha256()
    digests: dict[int, bytes] = {}
    position = 0
    for target in [*sorted(set(positions)), None]:
        while target is None or position < target:
            try:
                data = stream.read1(1 if target is None else min(READ_BYTES, target - position))
            except DAMAGE:
                data = b""
            if not data:
                digests[position] = digest.digest()
                return digests, position
            if target is None:
                break
            digest.update(data)
            position += len(data)
        else:
            digests[target] = digest.digest()
    return digests, None
