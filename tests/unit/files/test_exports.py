"""CSV and Parquet become lines of JSON: every readable row, in its place, and nothing else."""

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loader.errors import FileError
from loader.events.formats import FILE, export_entrance
from loader.files.exports import _buffered, open_lines

ENTRANCE = export_entrance("emailSend")
COLUMNS = ["email", "messageId", "itblInternal.documentCreatedAt"]
ROWS = st.lists(st.tuples(*[st.text() | st.text(alphabet='a",;\n\r\t{ ', max_size=8)] * len(COLUMNS)), max_size=8)
# If no row has several lines, an open quote cannot be taken for a quote of another row.
SHORT_ROWS = st.lists(
    st.tuples(*[st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))] * len(COLUMNS)), max_size=8
)


def read(path: Path) -> list[bytes]:
    """Return the lines of a file."""
    with open_lines(str(path), ENTRANCE) as (stream, _):
        return stream.read().splitlines(keepends=True)


class CountedLine(bytes):
    """A line that counts the bytes copied out of it."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        """Return a part, and count its bytes."""
        part = super().__getitem__(key)
        CountedLine.copied += len(part)
        return CountedLine(part)


def test_c6_a_long_line_is_copied_once() -> None:
    """A row of a Parquet file may have any length. The rest of a row is not copied again for each block."""
    line = CountedLine(b"x" * 10_000_000)
    CountedLine.copied = 0
    with _buffered(iter([line, b"\n", line])) as stream:
        assert stream.read() == line + b"\n" + line
    assert CountedLine.copied <= 2 * len(line)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file for a test."""
    return tmp_path_factory.mktemp("exports") / "emailSend"


def as_csv(rows: list[tuple[str, ...]], **options: Any) -> list[bytes]:
    """Return rows as CSV, one piece for each row."""
    pieces = []
    for row in [tuple(COLUMNS), *rows]:
        text = io.StringIO(newline="")
        csv.writer(text, **options).writerow(row)
        pieces.append(text.getvalue().encode())
    return pieces


def cells(row: tuple[str, ...]) -> dict[str, str]:
    """Return the cells of a row that have a value."""
    return {name: value for name, value in zip(COLUMNS, row, strict=True) if value}


@given(rows=ROWS, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), delimiter=st.sampled_from(",;\t|"))
@example(rows=[("", "", "")], quoting=csv.QUOTE_MINIMAL, delimiter="\t")
def test_csv_rows_are_read_as_they_were_written(
    path: Path, rows: list[tuple[str, ...]], quoting: int, delimiter: str
) -> None:
    """Quotes, delimiters and newlines are part of a cell. An empty cell has no value."""
    path.write_bytes(b"".join(as_csv(rows, quoting=quoting, delimiter=delimiter)))
    assert [json.loads(line) for line in read(path)] == [cells(row) for row in rows]


@given(
    rows=SHORT_ROWS,
    bad=st.sampled_from(
        [b'x,"never closed\r\n', b"too,few\r\n", b"far,too,many,cells\r\n", b'a,"b"c,d\n', b"a,\xff,c\n"]
    ),
    place=st.integers(0, 8),
)
@example(rows=[("", "", ",0")], bad=b'x,"never closed\r\n', place=0)
def test_an_invalid_row_is_passed_on_unchanged(path: Path, rows: list[tuple[str, ...]], bad: bytes, place: int) -> None:
    """Such a row comes out in its place, and every other row is complete."""
    header, *pieces = as_csv(rows)
    place = min(place, len(rows))
    path.write_bytes(b"".join([header, *pieces[:place], bad, *pieces[place:]]))
    lines = read(path)
    assert lines.pop(place) == bad
    assert [json.loads(line) for line in lines] == [cells(row) for row in rows]


def test_a_last_row_without_a_newline_is_a_line_without_one(path: Path) -> None:
    """The row may be incomplete, and the missing newline shows it."""
    path.write_bytes(b"a,b\n1,2\n3,4")
    assert read(path) == [b'{"a":"1","b":"2"}\n', b'{"a":"3","b":"4"}']


@pytest.mark.parametrize("content", [b"", b"\n", b"a,b", b"a,b\r\n", b"a,b\n\n\n"])
def test_a_file_without_rows_has_no_lines(path: Path, content: bytes) -> None:
    """A header alone gives no line."""
    path.write_bytes(content)
    assert b"".join(read(path)).strip() == b""


def test_lines_of_json_stay_as_they_are(path: Path) -> None:
    """Lines stay byte for byte, as in a file of tracking calls."""
    path.write_bytes(b' {"a": 1.10}\r\n\nx\n{"a"')
    with open_lines(str(path), FILE) as (stream, _):
        assert stream.read().splitlines(keepends=True) == read(path) == [b' {"a": 1.10}\r\n', b"\n", b"x\n", b'{"a"']


def test_the_values_of_parquet_are_exact(path: Path) -> None:
    """Times have Iterable's format, numbers are unchanged, and absent values are left out."""
    moment = datetime(2026, 3, 4, 15, 20, 11, tzinfo=UTC)
    row = {
        "createdAt": moment,
        "local": moment.replace(tzinfo=None),
        "campaignId": 2**60 + 1,
        "total": Decimal("1.10"),
        "bytes": b"text",
        "deviceInfo": {"deviceId": "d", "number": 2**60 + 1},
        "emailListIds": [1, None, 2**60 + 1],
        "items": [{"id": 2**53 + 1}, {"id": None}],
        "empty": "",
        "isBot": False,
    }
    table = pyarrow.Table.from_pylist([row, {"isBot": True, "nothing": None}])
    # The index that pandas adds is a column like any other.
    noted = json.dumps({"index_columns": ["campaignId"], "columns": [], "column_indexes": []})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"pandas": noted}), path)
    first, second = read(path)
    assert b'"total":1.10' in first
    written = {"createdAt": "2026-03-04 15:20:11 +00:00", "local": "2026-03-04 15:20:11 +00:00", "bytes": "text"}
    meant = row | written | {"total": 1.1}
    assert json.loads(first) == {name: value for name, value in meant.items() if value != ""}
    assert json.loads(second) == {"isBot": True}


def test_two_columns_of_one_name_are_refused(path: Path) -> None:
    """The file does not tell which of the columns counts."""
    pyarrow.parquet.write_table(pyarrow.table([[1], [2]], names=["email", "email"]), path)
    with pytest.raises(FileError, match="more than one column called email"):
        read(path)


def test_a_time_that_no_calendar_holds_is_damage(path: Path) -> None:
    """The damage is reported, and the rows before it are read."""
    times = pyarrow.array([0] * 1000 + [10**12], pyarrow.timestamp("s"))
    pyarrow.parquet.write_table(pyarrow.table({"createdAt": times}), path)
    with open_lines(str(path), ENTRANCE) as (stream, _):
        assert stream.read(43) == b'{"createdAt":"1970-01-01 00:00:00 +00:00"}\n'
        with pytest.raises(EOFError, match="out of range"):
            stream.read()
