"""Prints the rows of a query for a person (a table, or a line for each column) or for programs (CSV, JSON)."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from decimal import Decimal
from itertools import chain, islice
from shutil import get_terminal_size
from typing import Any, Literal

import msgspec

from loader.cli.output import cell, echo, echo_exact, grid, note
from loader.cli.query import Document, Result
from loader.runtime.terminal import escape_json_controls

Form = Literal["table", "lines", "csv", "json"]

# Number of rows that a terminal shows without a limit from the caller.
TERMINAL_ROWS = 100

_QUOTED = re.compile(r'[",\r\n]|^\s|\s$|^$')


def show_result(result: Result, form: Form | None, limit: int | None) -> None:
    """Write the rows of a query to stdout, and notes about the rows to stderr.

    Args:
        result: The result of the query.
        form: The form of the rows; None for a table, or for lines if the terminal is too narrow for the table.
        limit: Largest number of rows, 0 for all rows; None for all rows, or `TERMINAL_ROWS` on a terminal.
    """
    if result.columns is None:
        note(result.status or "Done.")
        return
    people = form not in {"csv", "json"}
    if limit is None:
        limit = TERMINAL_ROWS if people and sys.stdout.isatty() else 0
    rows = iter(result.rows)
    shown = islice(rows, limit) if limit else rows
    if form == "csv":
        _write_csv(result.columns, shown)
    elif form == "json":
        _write_json(result.columns, shown)
    else:
        _write_for_people(result.columns, list(shown), form)
    if limit and next(rows, None) is not None:
        note(f"There are more rows than the {limit:,} shown: --limit 0 shows all.")


def _write_for_people(columns: Sequence[str], rows: list[tuple[Any, ...]], form: Form | None) -> None:
    if form != "lines":
        text = grid(columns, rows, exact=True)
        too_wide = sys.stdout.isatty() and _width(text) > get_terminal_size().columns
        if form == "table" or not too_wide or not rows:
            echo(text)
            return
    heads = [cell(name) for name in columns]
    width = max(map(len, heads), default=0)
    for number, row in enumerate(rows, 1):
        echo(f"-- row {number:,}")
        for head, value in zip(heads, row, strict=True):
            echo(f"{head:<{width}}  {cell(value, exact=True)}".rstrip())


def _width(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)


def _write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    for row in chain([columns], rows):
        echo_exact(",".join("" if value is None else _quoted(_text(value)) for value in row))


def _quoted(text: str) -> str:
    """Return a text as a field of CSV; an empty text becomes two quotes, which distinguish the text from NULL."""
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _text(value: Any) -> str:
    if isinstance(value, bool | list | tuple):
        return _encode(value)
    return str(value)


def _write_json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    names = [_encode(name) for name in columns]

    def objects() -> Iterator[str]:
        for row in rows:
            parts = (f"    {name}: {_encode(value)}" for name, value in zip(names, row, strict=True))
            yield "  {\n" + ",\n".join(parts) + "\n  }"

    before = None
    for text in objects():
        echo_exact("[" if before is None else f"{before},")
        before = text
    echo_exact("[]" if before is None else f"{before}\n]")


def _encode(value: Any) -> str:
    return escape_json_controls(_encoder.encode(_plain(value)).decode())


def _plain(value: Any) -> Any:
    """Return a value in its JSON form: documents unchanged, numbers exact, and other values as text."""
    if isinstance(value, Document):
        return msgspec.Raw(value.encode())
    if isinstance(value, Decimal) and value.is_finite():
        return msgspec.Raw(str(value).encode())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.isoformat() if isinstance(value, date) else str(value)


_encoder = msgspec.json.Encoder()
