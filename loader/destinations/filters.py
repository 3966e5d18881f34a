"""Defines the filters of a destination, and reads them from the options of a command.

The database holds the filters as JSON. Nothing in this module does I/O.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from loader.errors import UsageError

TYPES = ("track", "identify", "page", "screen", "group", "alias")

_CONDITION = re.compile(r"\s*([^\s=!<>]+)\s*(!=|=|<|>|\bin\b|\bexists\b)\s*(.*)", re.DOTALL)


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on one value of a call.

    Attributes:
        path: The place of the value, with dots between the keys.
        op: The comparison.
        value: The JSON value to compare with; a list for `in`, and None for `exists`.
    """

    path: str
    op: Literal["=", "!=", "in", "exists", "<", ">"]
    value: Any = None


class Filters(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The calls that a destination gets, and their shape. Empty lists admit everything and change nothing.

    Attributes:
        sources: Schemas of sources.
        types: Types of calls.
        events: Patterns for the names of `track` calls, as sent.
        exclude: Patterns for the names of `track` calls that stay back.
        where: Conditions, all of which a call must meet.
        sample: The share of users whose calls go.
        drop: Paths of values that are left out.
        only: Paths of the only values that properties, traits and context keep.
        hash: Paths of values that are replaced by their SHA-256.
        rename: New names of events, by the name as sent.
        native: Whether Iterable's own body goes along.
    """

    sources: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    sample: float = 1.0
    drop: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    native: bool = False


def read_filters(stored: Mapping[str, Any]) -> Filters:
    """Return the filters that the database holds."""
    return msgspec.convert(stored, Filters)


def stored_filters(filters: Filters) -> dict[str, Any]:
    """Return filters in the form for the database."""
    stored: dict[str, Any] = msgspec.to_builtins(filters)
    return stored


def read_condition(text: str) -> Condition:
    """Read a condition such as `properties.plan = pro`, `context.ip exists` or `properties.total > 10`.

    A value that is JSON is that JSON value, and any other value is text. `in` takes values with commas between them.

    Raises:
        UsageError: The text is not a condition.
    """
    found = _CONDITION.fullmatch(text)
    if not found or bool(found[3].strip()) == (found[2] == "exists"):
        raise UsageError(
            f"{text!r} is not a condition. Write path, comparison and value, such as `properties.plan = pro`. "
            "The comparisons are =, !=, <, >, in and exists."
        )
    path, op, value = found[1], found[2], found[3].strip()
    if op == "exists":
        return Condition(path, "exists")
    if op == "in":
        return Condition(path, "in", [_read_value(part.strip()) for part in value.split(",")])
    return msgspec.convert({"path": path, "op": op, "value": _read_value(value)}, Condition)


def read_sample(text: str) -> float:
    """Read a share such as `10%` or `0.1`.

    Raises:
        UsageError: The text is not a share above 0 and up to 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"{text!r} is not a share of users. Write a share such as 10% or 0.1.")
    return share


def read_renaming(texts: tuple[str, ...]) -> dict[str, str]:
    """Read new names such as `Email Opened=Mail Opened`.

    Raises:
        UsageError: A text does not have the form OLD=NEW.
    """
    renamed = {}
    for text in texts:
        old, separator, new = text.partition("=")
        if not (old and separator and new):
            raise UsageError(f"{text!r} is not a new name. Write OLD=NEW.")
        renamed[old] = new
    return renamed


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
