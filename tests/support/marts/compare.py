"""Compares the expected rows of a mart with its present rows, and names the first differences."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.support.marts.expected import KEYS
from tests.support.marts.values import Row

_SHOWN = 5


def find_differences(
    mart: str, expected: Iterable[Row], actual: Iterable[Mapping[str, Any]], shown: int = _SHOWN
) -> list[str]:
    """Return a line for each difference, and after the first few lines the number of the others.

    Columns beyond the expected ones do not count. Numbers are equal by value, and times by their moment.

    Args:
        mart: The name of the mart, which decides the key of its rows.
        expected: The rows by the contract.
        actual: The rows of the database.
        shown: The number of differences that are described.
    """
    key = KEYS[mart]
    wanted = {_key(row, key): row for row in expected}
    present = [dict(row) for row in actual]
    found = {_key(row, key): row for row in present}
    times = Counter(_key(row, key) for row in present)
    lines = [f"{_name(key, each)}: {number} rows with one key" for each, number in times.items() if number > 1]
    lines += [f"{_name(key, each)}: the row is missing" for each in wanted if each not in found]
    lines += [f"{_name(key, each)}: the row is not expected" for each in found if each not in wanted]
    for each, row in wanted.items():
        if each in found:
            lines += [
                f"{_name(key, each)}: {column} is {_show(found[each].get(column, 'not there'))}, not {_show(value)}"
                for column, value in row.items()
                if not _equal(found[each].get(column, _MISSING), value)
            ]
    lines.sort()
    if len(lines) > shown:
        return [*(f"{mart} {line}" for line in lines[:shown]), f"{mart} has {len(lines) - shown} more differences"]
    return [f"{mart} {line}" for line in lines]


def assert_marts_equal(
    expected: Mapping[str, Iterable[Row]], actual: Mapping[str, Iterable[Mapping[str, Any]]]
) -> None:
    """Check that every expected mart is there and has the expected rows."""
    lines = [
        line
        for mart, rows in expected.items()
        for line in (find_differences(mart, rows, actual[mart]) if mart in actual else [f"{mart} is missing"])
    ]
    assert not lines, "\n".join(lines)


_MISSING = object()


def _key(row: Mapping[str, Any], key: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in key)


def _name(key: Sequence[str], values: Sequence[Any]) -> str:
    pairs = ", ".join(f"{name} {_show(value)}" for name, value in zip(key, values, strict=True))
    return f"({pairs})"


def _show(value: Any) -> str:
    return "NULL" if value is None else str(value)


def _equal(present: Any, wanted: Any) -> bool:
    """Return whether two values are equal; true is not the number 1."""
    return isinstance(present, bool) == isinstance(wanted, bool) and present == wanted
