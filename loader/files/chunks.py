"""The lines of a file, in chunks that land in one transaction each.

Offsets count bytes of the decompressed stream, so they mean the same for a file and its compressed copy.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loader.errors import FileError
from loader.files.streams import DAMAGE, READ_BYTES

# A chunk is what one transaction lands: large enough that a commit costs little, small enough to stay in memory.
CHUNK_BYTES = 4_000_000

# Longer lines are no events, but a file without newlines; what they hold stays in the file.
LINE_BYTES = 16_000_000

# Of an overlong line, what the quarantine keeps.
KEPT_BYTES = 100_000


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file.

    Attributes:
        data: The lines, each with its newline but perhaps the file's last; None when they are to be read again from
            the plain file they lie in (`read_chunk`).
        length: How many bytes they are.
        offset: Where they begin.
        end: Where the file continues: their end, or the beginning of a last line without a newline, which may not be
            whole yet.
        digest: SHA-256 of everything before `end`.
        truncated: Bytes of an overlong line left out after `data`, which is then that line's beginning.
        content_digest: SHA-256 of the whole file, when this is its last line and has no newline; None otherwise.
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
        """Bytes of the whole file, when this is its last line and has no newline; None otherwise."""
        return None if self.content_digest is None else self.offset + self.length + self.truncated


def read_chunk(path: str, chunk: Chunk) -> bytes:
    """Return the lines of a chunk.

    Raises:
        FileError: The file they lie in cannot be read any more.
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
    """Reads a stream of lines in chunks, and knows the digest of all it has passed.

    Args:
        stream: The decompressed bytes, at the beginning.
        path: The file's name, for messages.
        chunk_bytes: Size of a chunk.
        line_bytes: Length above which a line is left out.
        with_data: Whether chunks carry their lines; without, whoever needs them reads the plain file again, which
            costs less than handing them from process to process.

    Attributes:
        damage: What is wrong with a compressed file that could not be read to its end; empty when nothing is.
        size: Bytes of the whole file, once it has been read.
        content_digest: SHA-256 of the whole file, once it has been read.
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
        """Where the next chunk begins."""
        return self._position

    @property
    def digest(self) -> bytes:
        """SHA-256 of everything before that."""
        return self._digest.digest()

    def skip(self, offset: int) -> None:
        """Pass over everything before an offset at which a line begins.

        Raises:
            FileError: The file ends before it.
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
        """Pass over a line that was the last one, without a newline, when the file had landed whole.

        Args:
            size: Bytes of the file at that time.
            content_digest: SHA-256 of them.

        Returns:
            Whether it was passed over; it is not when it has become longer since, by more than white space.
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
        """Yield the rest of the file.

        A compressed file that is cut short or damaged yields what can be read; `damage` then says what is wrong.

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
        """Pass over a line that is too long to be an event, and report its beginning."""
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
        """Report a last line without a newline, which has been passed.

        It may be a line still being written, so the file counts as read up to its beginning. Where the file is
        damaged, it is no line at all.
        """
        if not self.damage:
            left_out = self._position - offset - len(kept)
            yield Chunk(kept, len(kept), offset, offset, before, left_out, self.digest)

    def _pass(self, length: int) -> int:
        """Take the first bytes out of the buffer; returns the offset at which they began."""
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
        """Fill the buffer, or find the end. What comes before the damage of a file is not lost."""
        with memoryview(self._buffer) as view:
            while not self.damage and self._filled < len(view):
                try:
                    # Asked for more than its buffer holds, it would read on, and lose what it has to damage after that.
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
    """Read a stream up to the last of some positions.

    Args:
        stream: The decompressed bytes, at the beginning.
        positions: Offsets, in any order.

    Returns:
        SHA-256 of everything before each position the stream reaches and before its end, and where it ends; None when
        it goes on after the last position.
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
