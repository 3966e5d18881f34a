"""Reads Iterable's export files, in JSON, CSV or Parquet, as lines of JSON.

Each row of CSV and Parquet becomes one JSON object, in the order of the rows and always in the same bytes. So chunks,
offsets, digests, resuming and quarantine work as for files of lines. An offset counts bytes of these lines.
"""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import IO, Any

import msgspec

from loader.errors import FileError, UsageError
from loader.events.formats import export_entrance, exported_kind
from loader.events.iterable_types import KINDS, PROFILES, kind_of_file, known_kind
from loader.files.streams import Naming, holds_rows, open_bytes, open_events, refuse_foreign, sniff

_PARQUET = b"PAR1"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DELIMITERS = ",;\t|"

# A row of a CSV file may have several lines. Without a limit, a row with a missing quote would not end.
_ROW_BYTES = 1 << 20
# Number of rows of a Parquet file that are in memory together.
_BATCH_ROWS = 1000

_encode_row = msgspec.json.Encoder(enc_hook=str).encode


def find_entrances(paths: Iterable[str], kind: str | None) -> dict[str, str]:
    """Return the entrance of each export file, by path.

    Args:
        paths: The files.
        kind: The kind of event in all files; None to take the kind from each file's name.

    Raises:
        UsageError: The kind is unknown, a file's name contains no kind, or a file contains no events.
    """
    known = f"The types are {', '.join(sorted(KINDS, key=str.lower))}."
    entrances: dict[str, str] = {}
    for path in paths:
        named = kind or kind_of_file(path)
        if named is None:
            raise UsageError(f"The name of {path} contains no type of event. Give the type with --type. {known}")
        if named.lower() in PROFILES:
            raise UsageError(
                f"{'--type ' + kind if kind else path} contains profiles of users, and profiles are not events."
            )
        spelled = known_kind(named)
        if spelled is None:
            raise UsageError(f"Iterable has no events of type {named}. {known}")
        entrances[path] = export_entrance(spelled)
    return entrances


def export_naming(kind: str | None) -> Naming:
    """Return the rule for the names of export files.

    Args:
        kind: The kind of event in the files; None to require a kind in each name.
    """

    def fits(path: str) -> bool:
        return holds_rows(path) and bool(kind or (kind_of_file(path) or PROFILES[0]) not in PROFILES)

    return Naming(
        fits, "emailSend.csv, smsBounce/part-1.ndjson.gz; --type gives the type of files without a type in their names"
    )


@contextmanager
def open_lines(path: str, entrance: str) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """Open a file as a stream of lines of JSON.

    Args:
        path: The file, or `-` for standard input.
        entrance: The entrance of the file. Only exports may have other formats than lines of JSON.

    Yields:
        The stream of decompressed lines, and the file beneath it, whose position shows the progress of reading.

    Raises:
        FileError: The file cannot be read, or its first bytes are those of a format without events.
    """
    if exported_kind(entrance) is None:
        with open_events(path) as opened:
            yield opened
        return
    with open_bytes(path) as (stream, beneath):
        start = sniff(path, stream)
        if start.startswith(_PARQUET):
            yield _buffered(_parquet_lines(path, stream, beneath)), beneath
        elif not start.removeprefix(_BYTE_ORDER_MARK).lstrip() or _is_json(start):
            refuse_foreign(path, start)
            yield stream, beneath
        elif start.lstrip().startswith(b"["):
            raise FileError(f"{path} is a JSON array. An export has one object a line. Nothing of the file was loaded.")
        else:
            refuse_foreign(path, start.partition(b"\n")[0] + b"\n", "an export")
            yield _buffered(_csv_lines(path, stream)), beneath


def _is_json(start: bytes) -> bool:
    return start.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"{")


class _Lines(io.RawIOBase):
    """A stream of the lines of an iterator."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        # A slice of a view copies no bytes, and a line may be long.
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Return True: the stream can be read (see `io.RawIOBase`)."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return their number (see `io.RawIOBase`)."""
        data = self._rest or memoryview(next(self._lines, b""))
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        self._rest = data[count:]
        return count


def _buffered(lines: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Lines(lines))


def _csv_lines(path: str, stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield a line of JSON for each row; a row that does not fit the header stays as it is, and is refused later."""
    # The csv module has one limit for the whole process. Its default would refuse the HTML of an e-mail.
    csv.field_size_limit(_ROW_BYTES)
    source = _Source(stream)
    header = source.row(lambda row: _split(row.removeprefix(_BYTE_ORDER_MARK), _delimiter(row)))
    names = [name.strip() for name in header[1] or []]
    if not any(names):
        raise FileError(f"{path} does not begin with the names of its columns. Nothing of the file was loaded.")
    _refuse_twins(path, names)
    delimiter = _delimiter(header[0])

    def fit(row: bytes) -> list[str] | None:
        values = _split(row, delimiter)
        return values if values and len(values) == len(names) else None

    while (found := source.row(fit))[0]:
        row, values = found
        if values is None:
            yield row
        else:
            cells = {name: value for name, value in zip(names, values, strict=True) if name and value}
            yield _encode_row(cells) + (b"\n" if row.endswith(b"\n") else b"")


def _refuse_twins(path: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FileError(f"{path} has more than one column called {', '.join(twice)}. Nothing of the file was loaded.")


def _delimiter(header: bytes) -> str:
    return max(_DELIMITERS, key=lambda character: header.count(character.encode()))


def _split(row: bytes, delimiter: str) -> list[str] | None:
    """Return the cells of a row; None if the bytes are not one row."""
    try:
        rows = list(csv.reader([row.decode().rstrip("\r\n")], delimiter=delimiter, strict=True))
    except (csv.Error, UnicodeDecodeError):
        return None
    return rows[0] if len(rows) == 1 else None


class _Source:
    """Reads the rows of a CSV file; a row may have several lines."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._ahead: deque[bytes] = deque()

    def row(self, fit: Callable[[bytes], list[str] | None]) -> tuple[bytes, list[str] | None]:
        """Return the next row that is not blank, and its cells as `fit` returns them.

        A row continues on the next line while a quote is open. If `fit` rejects such a row, the quote is a mistake:
        the first line is returned alone, and the other lines are read again.
        """
        # A line of delimiters is a row of empty cells, even if the delimiters are tabs.
        while (line := self._line()) and not line.strip(b"\r\n"):
            pass
        lines, quotes, length = [line], line.count(b'"'), len(line)
        while quotes % 2 and length < _ROW_BYTES and (following := self._line()):
            lines.append(following)
            quotes += following.count(b'"')
            length += len(following)
        row = b"".join(lines)
        # Python's reader accepts a quote within a cell, so an open quote would join two rows at the file's end.
        is_closed = len(lines) == 1 or quotes % 2 == 0
        values = fit(row) if row and is_closed else None
        if values is None and len(lines) > 1:
            self._ahead.extendleft(reversed(lines[1:]))
            return line, fit(line)
        return row, values

    def _line(self) -> bytes:
        return self._ahead.popleft() if self._ahead else self._stream.readline(_ROW_BYTES)


def _parquet_lines(path: str, stream: io.BufferedReader, beneath: IO[bytes]) -> Iterator[bytes]:
    """Yield a line of JSON for each row of a Parquet file.

    Raises:
        FileError: The end of the file, which describes its content, cannot be read.
        EOFError: The file is damaged at another place.
    """
    from pandas import NA, ArrowDtype  # noqa: PLC0415 - the import takes 0.5 s, and only Parquet needs it
    from pyarrow import ArrowException  # noqa: PLC0415
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    if stream is not beneath or not beneath.seekable():
        raise FileError(f"{path} is Parquet in a compressed file or a pipe: give the Parquet file itself.")
    try:
        file = ParquetFile(beneath)
    except (ArrowException, OSError) as error:
        raise FileError(f"{path} is a damaged Parquet file ({error}). Nothing of the file was loaded.") from None
    names = file.schema_arrow.names
    _refuse_twins(path, names)
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            # With Arrow's types, whole numbers with gaps stay whole; pandas' types would make them floats. The metadata
            # is ignored, because pandas may have written a column as an index.
            chunk = batch.to_pandas(types_mapper=ArrowDtype, ignore_metadata=True)
            for row in chunk.itertuples(index=False, name=None):
                cells = zip(names, row, strict=True)
                yield (
                    _encode_row({name: _cell(value) for name, value in cells if value is not NA and value != ""})
                    + b"\n"
                )
    except (ArrowException, OSError, OverflowError) as error:
        raise EOFError(str(error)) from None


def _cell(value: Any) -> Any:
    """Convert a value of Parquet to the form that Iterable writes in JSON."""
    if isinstance(value, datetime):
        moment = value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)
        return moment.isoformat(" ").replace("+00:00", " +00:00")
    if isinstance(value, Decimal) and value.is_finite():
        return msgspec.Raw(str(value).encode())
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value
