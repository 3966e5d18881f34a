"""Finds files of events, recognises their formats, and opens each as one stream of decompressed bytes.

The first bytes of a file decide its format, and not its name. Object stores may decompress `.gz` files in transit, and
logs are renamed.
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

# A digest of these first bytes selects the candidates for a known file. The digest of the whole file decides.
HEAD_BYTES = 256

# Bytes that are read from a stream at a time.
READ_BYTES = 1 << 20

STANDARD_INPUT = "-"

# The exceptions of decompression for data that is cut short or damaged.
DAMAGE = (EOFError, zlib.error, zstandard.ZstdError)

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
# zlib's largest window; 16 stands for gzip's header and checksum around the data (https://zlib.net/manual.html).
_GZIP_WINDOW = zlib.MAX_WBITS | 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SNIFF_BYTES = 4096
# Compressed bytes that are read at a time. A kilobyte may expand to many megabytes. In a larger block, a defect would
# also lose the data before it.
_PACKED_BYTES = 8192

# Compressed bytes that a decompressor gets at a time. zstd expands 4 bytes to 128 KiB at most, so 512 bytes to 16 MiB.
# gzip expands a byte to 1,032 bytes at most, so 8,192 bytes to 8 MiB.
_ZSTD_PIECE_BYTES = 512
_GZIP_PIECE_BYTES = 8192

# Endings of files of tracking calls, of tables from Iterable, and of compressed files.
_LINES = frozenset({".ndjson", ".jsonl", ".json"})
_TABLES = frozenset({".csv", ".tsv"})
_COMPRESSED = frozenset({".gz", ".zst", ".zstd"})
_ENDING = re.compile(r"\.[A-Za-z]{1,5}")

# Formats that people load by mistake, by their first bytes.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file (--format iterable-export loads Parquet files of Iterable)",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"SQLite format 3": "an SQLite database",
    b"BZh": "compressed with bzip2 (decompress the file, or use gzip or zstd)",
    b"\xfd7zXZ": "compressed with xz (decompress the file, or use gzip or zstd)",
    b"\xff\xfe": "UTF-16 text (convert the file to UTF-8)",
    b"\xfe\xff": "UTF-16 text (convert the file to UTF-8)",
}


@dataclass(frozen=True)
class Naming:
    """A rule for the names of files of events.

    Attributes:
        fits: Returns whether a path has such a name.
        example: Examples of such names, for messages.
    """

    fits: Callable[[str], bool]
    example: str


@dataclass(frozen=True)
class FoundFiles:
    """The files that paths name.

    Attributes:
        paths: The files to load, without repetitions, in the given order.
        left_out: Files in the folders whose names do not fit the rule.
    """

    paths: list[str]
    left_out: list[str]


def find_files(paths: Iterable[str], naming: Naming) -> FoundFiles:
    """Return the files that paths, glob patterns and folders name.

    Folders are searched to any depth, in the order of names. Hidden files and folders are left out.

    Args:
        paths: Paths, patterns and folders.
        naming: The rule for files in folders. A file that a path or a pattern names is taken under any name.

    Raises:
        FileError: A pattern matches nothing, a folder has no files of events, or a folder cannot be read completely.
    """
    found: dict[str, None] = {}
    left_out: dict[str, None] = {}
    for path in paths:
        for name in _expand(path, naming, left_out):
            found.setdefault(name)
    return FoundFiles(list(found), [name for name in left_out if name not in found])


def holds_calls(path: str) -> bool:
    """Return whether a file is named like a file of tracking calls.

    Its ending is one of lines of JSON, or an ending of compression without another ending before it.
    """
    name = Path(path)
    compressed = name.suffix.lower() in _COMPRESSED
    if compressed:
        name = name.with_suffix("")
    # Segment names its raw logs `1456300800000.1a2b3c4d5e.gz` (https://segment.com/docs/connections/storage/).
    return name.suffix.lower() in _LINES or (compressed and not _ENDING.fullmatch(name.suffix))


CALLS = Naming(holds_calls, ".ndjson, .jsonl, .json, also with .gz or .zst, or .gz and .zst alone")


def holds_rows(path: str) -> bool:
    """Return whether a file has an ending of Iterable's exports, for any kind of event."""
    name = Path(path)
    inner = name.with_suffix("") if name.suffix.lower() in _COMPRESSED else name
    return holds_calls(path) or name.suffix.lower() == ".parquet" or inner.suffix.lower() in _TABLES


def _expand(path: str, naming: Naming, left_out: dict[str, None]) -> Iterator[str]:
    if path == STANDARD_INPUT:
        yield path
        return
    if not path:
        raise FileError("A path is empty. Give the path of a file.")
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
                f"The folder {name} contains no file with the name of an event file ({naming.example}). It contains "
                f"{first_names(files, 3)}. Name these files to load them."
            )
        left_out.update(dict.fromkeys(file for file in files if not naming.fits(file)))
        yield from events


def first_names(names: Sequence[str], most: int) -> str:
    """Return the first names, separated by commas, and the number of the others.

    Args:
        names: The names.
        most: The largest number of names to return.
    """
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
        raise FileError(f"The folder {folder} contains no files.")
    return list(map(str, sorted(found)))


def is_regular(path: str) -> bool:
    """Return whether a path names a file that can be read more than once, which a pipe cannot."""
    return path != STANDARD_INPUT and _answers(Path(path).is_file)


def printable(path: str) -> str:
    """Return a path as valid Unicode; the name of a file may be any bytes."""
    return os.fsencode(path).decode(errors="replace")


def _answers(ask: Callable[[], bool]) -> bool:
    """Return the answer to a question about a path; False if the system refuses the answer."""
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
        The stream of decompressed bytes, and the file beneath it, whose position shows the progress of reading.

    Raises:
        FileError: The file cannot be read, or its first bytes are those of another format.
    """
    with open_bytes(path) as (stream, beneath):
        refuse_foreign(path, sniff(path, stream))
        yield stream, beneath


@contextmanager
def open_bytes(path: str) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """Open a file of any format, decompressed.

    Args:
        path: The file, or `-` for standard input.

    Yields:
        The stream of decompressed bytes, and the file beneath it, whose position shows the progress of reading.

    Raises:
        FileError: The file cannot be read.
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
    """Decompresses all members of a gzip file, or all frames of a zstd file, in order.

    The libraries' own readers do not suit damaged files. The reader of `gzip` discards the bytes before the defect. The
    reader of `zstandard` takes the end of a truncated file for its regular end.

    Args:
        stream: The compressed bytes.
        start: Creates a decompressor for one member.
        piece_bytes: Compressed bytes to decompress at a time; the number limits the memory of the result.
    """

    def __init__(self, stream: IO[bytes], start: Callable[[], Any], piece_bytes: int) -> None:
        self._stream = stream
        self._start = start
        self._piece_bytes = piece_bytes
        self._member: Any = None
        # A slice of a view copies no bytes, and a large block is sliced a thousand times.
        self._packed = memoryview(b"")
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        """Return True: the stream can be read (see `io.RawIOBase`)."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return their number (see `io.RawIOBase`).

        Raises:
            zlib.error: The data is damaged.
            zstandard.ZstdError: The data is damaged.
            EOFError: The data ends in the middle of a member.
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
    """Return the first bytes of a stream without removing them from the stream.

    Args:
        path: The file, for the message.
        stream: The decompressed bytes, at the beginning.

    Raises:
        FileError: The first bytes cannot be decompressed.
    """
    try:
        return stream.peek(_SNIFF_BYTES)[:_SNIFF_BYTES]
    except DAMAGE as error:
        raise FileError(f"Cannot read {path}: the compressed data is damaged at its beginning ({error}).") from None


def refuse_foreign(path: str, start: bytes, expected: str = "lines of JSON") -> None:
    """Refuse a file whose first bytes are those of another format.

    Args:
        path: The file.
        start: The first bytes of the file.
        expected: The expected format, for the message.

    Raises:
        FileError: The file has another format.
    """
    for magic, name in _FOREIGN.items():
        if start.startswith(magic):
            raise FileError(f"{path} is {name}, not {expected}. Nothing of the file was loaded.")
    # A NUL in one of several lines of JSON makes that line invalid, and not the file.
    first = start.lstrip().partition(b"\n")[0]
    if b"\0" in start and (b"\0" in first or not first.startswith((b"{", _BYTE_ORDER_MARK))):
        raise FileError(f"{path} is a binary file, not {expected}. Nothing of the file was loaded.")


def read_head(stream: io.BufferedReader) -> bytes:
    """Return the digest of the first line's beginning, which stays when a file grows, is renamed or compressed.

    Args:
        stream: The decompressed bytes, at the beginning.
    """
    head = b""
    with suppress(*DAMAGE):
        while len(head) < HEAD_BYTES and (data := stream.read1(HEAD_BYTES - len(head))):
            head += data
    return hashlib.sha256(head.partition(b"\n")[0].rstrip()).digest()
