"""Files of events: what they are, and their bytes as a stream of whole lines.

A file's bytes say what it is, not its name: object stores unpack `.gz` files on the way, and logs are renamed. Offsets
count bytes of the decompressed stream, so they mean the same for a file and its compressed copy.
"""

import glob
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from loader.errors import FileError

# Bytes that tell which file this may be; the digest of all of it settles the question.
HEAD_BYTES = 256

# A chunk is what one transaction lands: large enough that a commit costs little, small enough to stay in memory.
CHUNK_BYTES = 4_000_000

# Longer lines are no events, but a file without newlines; what they hold stays in the file.
LINE_BYTES = 16_000_000

# Of an overlong line, what the quarantine keeps.
KEPT_BYTES = 100_000

STANDARD_INPUT = "-"

EMPTY_DIGEST = hashlib.sha256().digest()

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SNIFF_BYTES = 4096
_READ_BYTES = 1 << 20

# What people hand over by mistake, by its first bytes.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"SQLite format 3": "an SQLite database",
    b"BZh": "bzip2, which is not read: decompress it, or use gzip or zstd",
    b"\xfd7zXZ": "xz, which is not read: decompress it, or use gzip or zstd",
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
}


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
    """

    data: bytes | None
    length: int
    offset: int
    end: int
    digest: bytes
    truncated: int = 0


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


def find_files(paths: Iterable[str]) -> list[str]:
    """Return the files that paths, glob patterns and folders name, each once, in the order given.

    Folders are searched to any depth, in the order of names; hidden files and folders are passed over.

    Raises:
        FileError: A path does not exist, a pattern matches nothing, or a folder holds no files.
    """
    found: dict[str, None] = {}
    for path in paths:
        for name in _expand(path):
            found.setdefault(name)
    return list(found)


def _expand(path: str) -> Iterator[str]:
    if path == STANDARD_INPUT:
        yield path
        return
    names = [path] if Path(path).exists() or not glob.has_magic(path) else sorted(glob.glob(path, recursive=True))
    if not names:
        raise FileError(f"No file matches {path}.")
    for name in names:
        if not Path(name).is_dir():
            yield name
            continue
        inside = [
            entry
            for entry in sorted(Path(name).rglob("*"))
            if entry.is_file() and not any(part.startswith(".") for part in entry.relative_to(name).parts)
        ]
        if not inside:
            raise FileError(f"The folder {name} holds no files.")
        yield from map(str, inside)


@contextmanager
def open_events(path: str) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """Open a file of lines, decompressed.

    Args:
        path: The file, or `-` for standard input.

    Yields:
        The stream of decompressed bytes, and the file beneath it, whose position tells how far reading has come.

    Raises:
        FileError: It cannot be read, or its first bytes say that it holds no lines of JSON.
    """
    try:
        beneath: IO[bytes] = (
            sys.stdin.buffer if path == STANDARD_INPUT else Path(path).open("rb")  # noqa: SIM115 - closed below
        )
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror}.") from None
    try:
        buffered = io.BufferedReader(beneath, _READ_BYTES) if isinstance(beneath, io.RawIOBase) else beneath
        start = buffered.peek(_SNIFF_BYTES)[:_SNIFF_BYTES] if hasattr(buffered, "peek") else b""
        stream = _decompressed(buffered, start)
        _refuse_foreign(path, stream)
        yield stream, beneath
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror or error}.") from None
    finally:
        if path != STANDARD_INPUT:
            beneath.close()


def _decompressed(stream: IO[bytes], start: bytes) -> io.BufferedReader:
    if start.startswith(_GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), _READ_BYTES)
    if start.startswith(_ZSTD):
        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
        return io.BufferedReader(reader, _READ_BYTES)
    return stream  # type: ignore[return-value]


def _refuse_foreign(path: str, stream: io.BufferedReader) -> None:
    try:
        start = stream.peek(_SNIFF_BYTES)[:_SNIFF_BYTES]
    except _DAMAGE as error:
        raise FileError(f"Cannot read {path}: the compressed data is damaged at its beginning ({error}).") from None
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise FileError(f"{path} is {what}, not lines of JSON. Nothing of it was loaded.")
    if b"\0" in start:
        raise FileError(f"{path} is a binary file, not lines of JSON. Nothing of it was loaded.")


# What decompressing raises when the data is cut short or damaged.
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


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
        self.damage = ""
        self.content_digest = b""
        self.size = 0

    def skip(self, offset: int) -> None:
        """Pass over everything before an offset at which a line begins.

        Raises:
            FileError: The file ends before it.
        """
        while self._position < offset:
            data = self._stream.read(min(_READ_BYTES, offset - self._position))
            if not data:
                raise FileError(f"{self._path} became shorter while it was read. Run the command again.")
            self._digest.update(data)
            self._position += len(data)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rest of the file.

        A compressed file that is cut short or damaged yields what can be read; `damage` then says what is wrong.

        Raises:
            FileError: The file cannot be read any more.
        """
        at_end = False
        while not at_end:
            at_end = self._fill()
            cut = self._buffer.rfind(b"\n", 0, self._filled) + 1
            if cut:
                data = bytes(self._buffer[:cut]) if self._with_data else None
                offset = self._pass(cut)
                yield Chunk(data, cut, offset, self._position, self._digest.digest())
            elif not at_end and len(self._buffer) < self._line_bytes:
                self._buffer.extend(bytes(min(len(self._buffer), self._line_bytes - len(self._buffer))))
            elif not at_end:
                yield self._overlong()
                at_end = False
        rest = bytes(self._buffer[: self._filled])
        content = self._digest.copy()
        content.update(rest)
        self.size = self._position + len(rest)
        self.content_digest = content.digest()
        if rest and not self.damage:
            # It may be a line still being written, so the file counts as read up to its beginning.
            yield Chunk(rest, len(rest), self._position, self._position, self._digest.digest())

    def _overlong(self) -> Chunk:
        """Pass over a line that is too long to be an event, and report its beginning."""
        kept = bytes(self._buffer[:KEPT_BYTES])
        offset = self._pass(self._filled)
        at_end = False
        while not at_end:
            at_end = self._fill()
            cut = self._buffer.find(b"\n", 0, self._filled) + 1
            self._pass(cut or self._filled)
            if cut:
                break
        left_out = self._position - offset - len(kept)
        return Chunk(kept, len(kept), offset, self._position, self._digest.digest(), left_out)

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

    def _fill(self) -> bool:
        """Fill the buffer; says whether the file ended. What comes before the damage of a file is not lost."""
        with memoryview(self._buffer) as view:
            while not self.damage and self._filled < len(view):
                try:
                    count = self._stream.readinto1(view[self._filled :])
                except _DAMAGE as error:
                    self.damage = str(error)
                    break
                except OSError as error:
                    raise FileError(f"Cannot read {self._path}: {error.strerror or error}.") from None
                if not count:
                    return True
                self._filled += count
        return bool(self.damage)


def read_head(stream: io.BufferedReader) -> bytes:
    """Return the digest of a stream's first bytes, without passing them."""
    head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    return hashlib.sha256(head).digest()


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
                data = stream.read1(1 if target is None else min(_READ_BYTES, target - position))
            except _DAMAGE:
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
