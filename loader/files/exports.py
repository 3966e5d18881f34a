"""Iterable's export files as lines of JSON, whatever they were written as.

CSV and Parquet become one JSON object a row, in the order of the rows and always in the same bytes. So chunks, offsets,
digests, resuming and the quarantine work for them as for any file of lines; an offset counts bytes of these lines.
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

# A row of a CSV file may go over several lines, but where a quote is missing it would never end.
_ROW_BYTES = 1 << 20
# Rows of a Parquet file in memory at a time.
_BATCH_ROWS = 1000

_encode_row = msgspec.json.Encoder(enc_hook=str).encode


def find_entrances(paths: Iterable[str], kind: str | None) -> dict[str, str]:
    """Return the entrance of each of some export files.

    Args:
        paths: The files.
        kind: The kind of event all of them hold; None to go by their names.

    Raises:
        UsageError: There is no such kind, or a file's name does not tell, or it holds no events.
    """
    known = f"The types are {', '.join(sorted(KINDS, key=str.lower))}."
    entrances: dict[str, str] = {}
    for path in paths:
        named = kind or kind_of_file(path)
        if named is None:
            raise UsageError(f"The name of {path} does not tell what it holds. Give it with --type. {known}")
        if named.lower() in PROFILES:
            raise UsageError(f"{'--type ' + kind if kind else path} is for profiles of users, which are no events.")
        spelled = known_kind(named)
        if spelled is None:
            raise UsageError(f"Iterable exports no {named}. {known}")
        entrances[path] = export_entrance(spelled)
    return entrances


def export_naming(kind: str | None) -> Naming:
    """Return what exports are called.

    Args:
        kind: The kind of event they hold; None to go by their names.
    """

    def fits(path: str) -> bool:
        return holds_rows(path) and bool(kind or (kind_of_file(path) or PROFILES[0]) not in PROFILES)

    return Naming(fits, "emailSend.csv, smsBounce/part-1.ndjson.gz; --type gives the type where no name does")


@contextmanager
def open_lines(path: str, entrance: str) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """Open a file as lines of JSON.

    Args:
        path: The file, or `-` for standard input.
        entrance: What kind of file it is: only an export may be anything else than lines of JSON.

    Yields:
        What `open_events` yields.

    Raises:
        FileError: It cannot be read, or its first bytes say that it holds no events.
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
            raise FileError(f"{path} is a JSON array. An export has one object a line. Nothing of it was loaded.")
        else:
            refuse_foreign(path, start.partition(b"\n")[0] + b"\n", "an export")
            yield _buffered(_csv_lines(path, stream)), beneath


def _is_json(start: bytes) -> bool:
    return start.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"{")


class _Lines(io.RawIOBase):
    """A stream of the lines that something yields."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        # A view: a slice of one copies no bytes, however long the line is.
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say that it can be read, as `io.RawIOBase` has it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, as `io.RawIOBase` has it."""
        data = self._rest or memoryview(next(self._lines, b""))
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        self._rest = data[count:]
        return count


def _buffered(lines: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Lines(lines))


def _csv_lines(path: str, stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield a line for each row; a row that does not fit its header as it came, so that it is refused by itself."""
    # The library's limit is for the whole process, and would refuse an e-mail's HTML.
    csv.field_size_limit(_ROW_BYTES)
    source = _Source(stream)
    header = source.row(lambda row: _split(row.removeprefix(_BYTE_ORDER_MARK), _delimiter(row)))
    names = [name.strip() for name in header[1] or []]
    if not any(names):
        raise FileError(f"{path} does not begin with the names of its columns. Nothing of it was loaded.")
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
        raise FileError(f"{path} has more than one column called {', '.join(twice)}. Nothing of it was loaded.")


def _delimiter(header: bytes) -> str:
    return max(_DELIMITERS, key=lambda character: header.count(character.encode()))


def _split(row: bytes, delimiter: str) -> list[str] | None:
    """Return the cells of one row; None when it is none."""
    try:
        rows = list(csv.reader([row.decode().rstrip("\r\n")], delimiter=delimiter, strict=True))
    except (csv.Error, UnicodeDecodeError):
        return None
    return rows[0] if len(rows) == 1 else None


class _Source:
    """The rows of a CSV file, of which each may go over several lines."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._ahead: deque[bytes] = deque()

    def row(self, fit: Callable[[bytes], list[str] | None]) -> tuple[bytes, list[str] | None]:
        """Return the next row, blank lines passed over, and what `fit` makes of it.

        Lines are one row while a quote is open. When that gives none, the quote should not have been there: the first
        of the lines is returned alone, and the others are looked at anew.
        """
        # A line of delimiters is a row of empty cells, also where tabs delimit them.
        while (line := self._line()) and not line.strip(b"\r\n"):
            pass
        lines, quotes, length = [line], line.count(b'"'), len(line)
        while quotes % 2 and length < _ROW_BYTES and (following := self._line()):
            lines.append(following)
            quotes += following.count(b'"')
            length += len(following)
        row = b"".join(lines)
        # Python's reader takes a quote within a cell, so that an open one would join two rows at the file's end.
        is_closed = len(lines) == 1 or quotes % 2 == 0
        values = fit(row) if row and is_closed else None
        if values is None and len(lines) > 1:
            self._ahead.extendleft(reversed(lines[1:]))
            return line, fit(line)
        return row, values

    def _line(self) -> bytes:
        return self._ahead.popleft() if self._ahead else self._stream.readline(_ROW_BYTES)


def _parquet_lines(path: str, stream: io.BufferedReader, beneath: IO[bytes]) -> Iterator[bytes]:
    """Yield a line for each row of a Parquet file.

    Raises:
        FileError: It cannot be read from its end, where Parquet says what is in it.
        EOFError: It is damaged further on.
    """
    from pandas import NA, ArrowDtype  # noqa: PLC0415 - half a second, for those who have such files
    from pyarrow import ArrowException  # noqa: PLC0415
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    if stream is not beneath or not beneath.seekable():
        raise FileError(f"{path} is Parquet in a compressed file or a pipe: give the Parquet file itself.")
    try:
        file = ParquetFile(beneath)
    except (ArrowException, OSError) as error:
        raise FileError(f"{path} is a damaged Parquet file ({error}). Nothing of it was loaded.") from None
    names = file.schema_arrow.names
    _refuse_twins(path, names)
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            # Arrow's own types: pandas would turn whole numbers with gaps into floats. And no index: whoever wrote the
            # file with pandas may have made one of a column.
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
    """Return a value of Parquet's as Iterable writes it in JSON."""
    if isinstance(value, datetime):
        moment = value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)
        return moment.isoformat(" ").replace("+00:00", " +00:00")
    if isinstance(value, Decimal) and value.is_finite():
        return msgspec.Raw(str(value).encode())
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value
