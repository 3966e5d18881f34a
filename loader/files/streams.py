"""Files of events: which there are, what they are, and their bytes as one stream.

A file's bytes say what it is, not its name: object stores unpack `.gz` files on the way, and logs are renamed.
"""

import glob
import hashlib
import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from loader.errors import FileError

# Bytes of the first line that tell which file this may be; the digest of all of it settles the question.
HEAD_BYTES = 256

# What a stream is asked for at a time.
READ_BYTES = 1 << 20

STANDARD_INPUT = "-"

# What decompressing raises when the data is cut short or damaged.
DAMAGE = (EOFError, zlib.error, zstandard.ZstdError)

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
# zlib's largest window, and that gzip's header and checksum are around the data.
_GZIP_WINDOW = zlib.MAX_WBITS | 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SNIFF_BYTES = 4096
# Of compressed data: little, because a kilobyte can hold many megabytes, and what it holds before damage would be lost.
_PACKED_BYTES = 8192

# Compressed bytes handed to a decompressor at a time. zstd makes 128 KiB of 4 bytes at most: 16 MiB of these.
# gzip makes 1,032 bytes of one at most.
_ZSTD_PIECE_BYTES = 512
_GZIP_PIECE_BYTES = 8192

# Endings of files of tracking calls, of Iterable's exports, and of either when it is compressed.
_LINES = frozenset({".ndjson", ".jsonl", ".json"})
_TABLES = frozenset({".csv", ".tsv"})
_COMPRESSED = frozenset({".gz", ".zst", ".zstd"})
_ENDING = re.compile(r"\.[A-Za-z]{1,5}")

# What people hand over by mistake, by its first bytes.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file (one of Iterable's exports is read with --format iterable-export)",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"SQLite format 3": "an SQLite database",
    b"BZh": "bzip2, which is not read: decompress it, or use gzip or zstd",
    b"\xfd7zXZ": "xz, which is not read: decompress it, or use gzip or zstd",
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
}


@dataclass(frozen=True)
class Naming:
    """The names that files of events have.

    Attributes:
        fits: Says of a path whether its name is that of a file of events.
        example: Such names, for a person.
    """

    fits: Callable[[str], bool]
    example: str


@dataclass(frozen=True)
class FoundFiles:
    """The files that paths name.

    Attributes:
        paths: Those to load, each once, in the order given.
        left_out: Files of folders whose names do not say that they hold events.
    """

    paths: list[str]
    left_out: list[str]


def find_files(paths: Iterable[str], naming: Naming) -> FoundFiles:
    """Return the files that paths, glob patterns and folders name.

    Folders are searched to any depth, in the order of names; hidden files and folders are passed over.

    Args:
        paths: Paths, patterns and folders.
        naming: Of a folder, only files with such names are taken; a file that is named itself, or matched by a
            pattern, is taken whatever it is called.

    Raises:
        FileError: A pattern matches nothing, a folder holds no files of events, or not all of it can be read.
    """
    found: dict[str, None] = {}
    left_out: dict[str, None] = {}
    for path in paths:
        for name in _expand(path, naming, left_out):
            found.setdefault(name)
    return FoundFiles(list(found), [name for name in left_out if name not in found])


def holds_calls(path: str) -> bool:
    """Say whether a file is called like one of tracking calls: lines of JSON, or compressed without another ending."""
    name = Path(path)
    compressed = name.suffix.lower() in _COMPRESSED
    if compressed:
        name = name.with_suffix("")
    # Segment calls its raw logs `1456300800000.1a2b3c4d5e.gz`.
    return name.suffix.lower() in _LINES or (compressed and not _ENDING.fullmatch(name.suffix))


CALLS = Naming(holds_calls, ".ndjson, .jsonl, .json, also with .gz or .zst, or .gz and .zst alone")


def holds_rows(path: str) -> bool:
    """Say whether a file is called like one that Iterable's exports come in, whatever kind of event it holds."""
    name = Path(path)
    inner = name.with_suffix("") if name.suffix.lower() in _COMPRESSED else name
    return holds_calls(path) or name.suffix.lower() == ".parquet" or inner.suffix.lower() in _TABLES


def _expand(path: str, naming: Naming, left_out: dict[str, None]) -> Iterator[str]:
    if path == STANDARD_INPUT:
        yield path
        return
    if not path:
        raise FileError("An empty path names no file.")
    literal = not glob.has_magic(path) or _answers(Path(path).exists)
    names = [path] if literal else sorted(glob.glob(path, recursive=True))
    if not names:
        raise FileError(f"No file matches {path}.")
    for name in names:
        if not _answers(Path(name).is_dir):
            yield name
            continue
        files = _files_in(name)
        events = [file for file in files if naming.fits(file)]
        if not events:
            raise FileError(
                f"The folder {name} holds no file called like one of events ({naming.example}), but "
                f"{first_names(files, 3)}. Name the files themselves to load them all the same."
            )
        left_out.update(dict.fromkeys(file for file in files if not naming.fits(file)))
        yield from events


def first_names(names: Sequence[str], most: int) -> str:
    """Return names with commas between them, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _files_in(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise FileError(f"Cannot read the folder {error.filename}: {error.strerror}. Nothing was loaded.")

    found: list[Path] = []
    try:
        for place, folders, names in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(place, name) for name in names if not name.startswith(".") and Path(place, name).is_file()]
    except OSError as error:
        refuse(error)
    if not found:
        raise FileError(f"The folder {folder} holds no files.")
    return list(map(str, sorted(found)))


def is_regular(path: str) -> bool:
    """Say whether a path is a file that can be read more than once, rather than a pipe."""
    return path != STANDARD_INPUT and _answers(Path(path).is_file)


def printable(path: str) -> str:
    """Return a path as text that any program can hold; a file's name can be any bytes."""
    return os.fsencode(path).decode(errors="replace")


def _answers(ask: Callable[[], bool]) -> bool:
    """Ask about a path; what lies where nobody lets us look is not there."""
    try:
        return ask()
    except OSError:
        return False


@contextmanager
def open_events(path: str) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """Open a file of lines of JSON, decompressed.

    Args:
        path: The file, or `-` for standard input.

    Yields:
        The stream of decompressed bytes, and the file beneath it, whose position tells how far reading has come.

    Raises:
        FileError: It cannot be read, or its first bytes say that it holds no lines of JSON.
    """
    with open_bytes(path) as (stream, beneath):
        refuse_foreign(path, sniff(path, stream))
        yield stream, beneath


@contextmanager
def open_bytes(path: str) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """Open a file of any kind, decompressed; `open_events` says what is yielded.

    Raises:
        FileError: It cannot be read.
    """
    if path == STANDARD_INPUT and sys.stdin is None:
        raise FileError("Standard input is closed. Give a file, or send the lines through a pipe.")
    try:
        beneath: IO[bytes] = (
            sys.stdin.buffer if path == STANDARD_INPUT else Path(path).open("rb")  # noqa: SIM115 - closed below
        )
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror}.") from None
    try:
        buffered = io.BufferedReader(beneath, READ_BYTES) if isinstance(beneath, io.RawIOBase) else beneath
        start = buffered.peek(_SNIFF_BYTES)[:_SNIFF_BYTES] if hasattr(buffered, "peek") else b""
        yield _decompressed(buffered, start), beneath
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror or error}.") from None
    finally:
        if path != STANDARD_INPUT:
            beneath.close()


def _decompressed(stream: IO[bytes], start: bytes) -> io.BufferedReader:
    if start.startswith(_GZIP):
        unpacker = _Unpacker(stream, lambda: zlib.decompressobj(_GZIP_WINDOW), _GZIP_PIECE_BYTES)
        return io.BufferedReader(unpacker, READ_BYTES)
    if start.startswith(_ZSTD):
        unpacker = _Unpacker(stream, zstandard.ZstdDecompressor().decompressobj, _ZSTD_PIECE_BYTES)
        return io.BufferedReader(unpacker, READ_BYTES)
    return stream  # type: ignore[return-value]


class _Unpacker(io.RawIOBase):
    """Decompresses one gzip member, or one frame of zstd, after the other.

    The libraries' own readers are not for damaged files: that of `gzip` keeps what it has read before the damage to
    itself, that of `zstandard` takes the end of a file that was cut short for the end of its lines.

    Args:
        stream: The compressed bytes.
        start: Makes a decompressor for one member.
        piece_bytes: Compressed bytes to decompress at a time; they bound the memory that the result takes.
    """

    def __init__(self, stream: IO[bytes], start: Callable[[], Any], piece_bytes: int) -> None:
        self._stream = stream
        self._start = start
        self._piece_bytes = piece_bytes
        self._member: Any = None
        # Views: a slice of one copies no bytes, and the rest of a large block is taken a thousand times.
        self._packed = memoryview(b"")
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        """Say that it can be read, as `io.RawIOBase` has it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, as `io.RawIOBase` has it.

        Raises:
            zlib.error: The data is damaged.
            zstandard.ZstdError: The data is damaged.
            EOFError: It ends before it is complete.
        """
        while not self._unpacked:
            if not self._packed:
                self._packed = memoryview(self._stream.read(_PACKED_BYTES))
            if not self._packed:
                if self._member is not None and not self._member.eof:
                    raise EOFError("it ends in the middle of the compressed data")
                return 0
            if self._member is None or self._member.eof:
                self._member = self._start()
            piece = self._packed[: self._piece_bytes]
            self._unpacked = memoryview(self._member.decompress(piece))
            self._packed = self._packed[len(piece) - len(self._member.unused_data) :]
        count = min(len(buffer), len(self._unpacked))
        buffer[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count


def sniff(path: str, stream: io.BufferedReader) -> bytes:
    """Return the first bytes of a stream, which stay in it.

    Raises:
        FileError: They cannot be decompressed.
    """
    try:
        return stream.peek(_SNIFF_BYTES)[:_SNIFF_BYTES]
    except DAMAGE as error:
        raise FileError(f"Cannot read {path}: the compressed data is damaged at its beginning ({error}).") from None


def refuse_foreign(path: str, start: bytes, expected: str = "lines of JSON") -> None:
    """Refuse what people hand over by mistake.

    Args:
        path: The file.
        start: Its first bytes.
        expected: What it should have been.

    Raises:
        FileError: It is something else.
    """
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise FileError(f"{path} is {what}, not {expected}. Nothing of it was loaded.")
    # Among lines of JSON, one with a NUL in it is a bad line, not a bad file.
    first = start.lstrip().partition(b"\n")[0]
    if b"\0" in start and (b"\0" in first or not first.startswith((b"{", _BYTE_ORDER_MARK))):
        raise FileError(f"{path} is a binary file, not {expected}. Nothing of it was loaded.")


def read_head(stream: io.BufferedReader) -> bytes:
    """Return a digest that a file keeps when it grows, is renamed or compressed: that of its first line's beginning.

    Args:
        stream: The decompressed bytes, at the beginning.
    """
    head = b""
    with suppress(*DAMAGE):
        while len(head) < HEAD_BYTES and (data := stream.read1(HEAD_BYTES - len(head))):
            head += data
    return hashlib.sha256(head.partition(b"\n")[0].rstrip()).digest()
