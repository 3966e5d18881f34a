"""A second implementation of the layout's rules in Python, by the contract: the tables for given events.

The model shares no code with the loader or the dbt project, so it can disagree with them. Only the declarations of a
model are read from the project.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import yaml

from tests.support.folders import ROOT
from tests.support.served_tables import TABLES

PROJECT = ROOT / "dbt_project"

BUILT_IN = {"accounts", "aliases", "groups", "identifies", "pages", "screens", "tracks", "users"}
# The reserved words in the tests, and the columns that PostgreSQL gives every table.
RESERVED = {"from", "null", "oid", "open", "order", "select", "table", "tag", "true", "user", "where"}
SYSTEM = {"cmax", "cmin", "ctid", "tableoid", "xmax", "xmin"}
LONGEST = 63

Keys = tuple[str, ...]
Event = Mapping[str, Any]


def snake(name: str) -> str:
    """Return the snake case of a name.

    A word is a run of capitals and digits with the small letters and digits after it.
    """
    words: list[str] = []
    at = 0

    def run(allowed: str) -> str:
        nonlocal at
        start = at
        while at < len(name) and name[at] in allowed:
            at += 1
        return name[start:at]

    capitals, small = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", "abcdefghijklmnopqrstuvwxyz0123456789"
    while at < len(name):
        word = run(capitals).lower() + run(small)
        if word:
            words.append(word)
        else:
            at += 1
    return "_".join(words)


def identifier(name: str) -> str:
    """Return an identifier: with a prefix if it would need quotes, and with a hash at its end if it is too long."""
    name = f"_{name}" if name in RESERVED or name[:1].isdigit() else name
    if len(name) > LONGEST:
        return f"{name[: LONGEST - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def table_of(event: str) -> str:
    """Return the table of an event's name; empty if the name gives no table."""
    name = snake(event)
    return f"_{name}" if name in BUILT_IN else identifier(name)


def column_of(path: Keys) -> str:
    """Return the column of a property; empty if the keys give no column."""
    keys = path[1:] if path[0] == "properties" else path
    name = identifier("_".join(word for word in map(snake, keys) if word))
    return f"_{name}" if name in SYSTEM else name


def is_time(text: str) -> bool:
    """Return whether a string is a calendar day, a `T`, and a time of day with or without an offset."""
    shape = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?"
    if not re.fullmatch(shape, text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def number(value: float) -> Decimal:
    """Return a number exactly as in its JSON."""
    return Decimal(json.dumps(value))


def type_of(value: Any) -> str:
    """Return the narrowest type of a value that is neither null nor an object."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        whole = number(value) % 1 == 0 if abs(value) < 2**64 else False
        return "bigint" if whole and -(2**63) <= number(value) < 2**63 else "numeric"
    return "timestamp with time zone" if isinstance(value, str) and is_time(value) else "text"


def least(types: set[str]) -> str:
    """Return the narrowest type that holds values of all given types."""
    if len(types) == 1:
        return next(iter(types))
    return "numeric" if types == {"bigint", "numeric"} else "text"


def leaves(value: Any, path: Keys) -> Iterator[tuple[Keys, Any]]:
    """Yield every value that is neither null nor an object, with its keys, in the order of the object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif value is not None:
        yield path, value


def at(event: Event, path: Keys) -> Any:
    """Return the value at some keys, or None."""
    value: Any = event
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


@dataclass(frozen=True)
class Declared:
    """A column of a model's yml: its type and the path of its value; no path for the layout's own columns."""

    name: str
    data_type: str
    paths: tuple[Keys, ...]


@cache
def declared(table: str) -> tuple[Declared, ...]:
    """Return the declarations of a table's model, or those of all tables without a model."""
    file = f"iterable/{table}.yml" if table in TABLES else "raw/found_collections.yml"
    (model,) = yaml.safe_load((PROJECT / "models" / file).read_text(encoding="utf-8"))["models"]
    columns = []
    for column in model["columns"]:
        meta = (column.get("config") or {}).get("meta") or {}
        origins = [("context", meta.get("context")), ("properties", meta.get("property"))]
        paths = [
            (root, *(origin.split(".") if isinstance(origin, str) else origin)) for root, origin in origins if origin
        ]
        columns.append(Declared(column["name"], column["data_type"], tuple(paths)))
    return tuple(columns)


@dataclass
class Column:
    """An expected column: its type, and the paths of its value, of which the first with a value counts."""

    data_type: str
    paths: list[Keys]
    whole: int = 0
    types: set[str] = field(default_factory=set)

    def value(self, event: Event) -> Any:
        """Return the column's value in an event: the first existing value; objects only for declared columns."""
        for place, path in enumerate(self.paths):
            value = at(event, path)
            if value is not None and (place < self.whole or not isinstance(value, dict)):
                return value
        return None


@dataclass
class Table:
    """An expected table: its columns without the layout's own, its events by id, and properties without a column."""

    columns: dict[str, Column]
    rows: dict[str, Event]
    without_column: set[Keys]


def expect(events: Sequence[Event]) -> dict[str, Table]:
    """Return all expected tables for the events, in the order of sending."""
    collections: dict[str, list[Event]] = {}
    for event in events:
        collections.setdefault(table_of(event["event"]), []).append(event)
    collections.pop("", None)
    return {name: _expect(name, found) for name, found in {**collections, "tracks": list(events)}.items()}


def _expect(name: str, events: Sequence[Event]) -> Table:
    columns = {c.name: Column(c.data_type, list(c.paths), len(c.paths)) for c in declared(name) if c.paths}
    layout = {c.name for c in declared(name) if not c.paths}
    taken = {path for c in declared(name) for path in c.paths}
    found: dict[str, Column] = {}
    without: set[Keys] = set()
    roots = ("context",) if name == "tracks" else ("properties", "context")
    rows: dict[str, Event] = {}
    for event in events:
        rows.setdefault(event["messageId"], event)
        for root in roots:
            for path, value in leaves(event.get(root), (root,)):
                if len(path) == 1 or any(path[:length] in taken for length in range(2, len(path) + 1)):
                    continue
                column = column_of(path)
                if not column or column in layout:
                    without.add(path)
                    continue
                place = columns.get(column) or found.setdefault(column, Column("", []))
                if path not in place.paths:
                    if place.paths:
                        without.add(path)
                    place.paths.append(path)
                place.types.add(type_of(value))
    for column in found.values():
        column.data_type = least(column.types)
    return Table(columns | found, rows, without)


def fits(value: Any, data_type: str) -> Any:
    """Return a value as a column of a type holds it; None if the column cannot hold the value."""
    if value is None:
        return None
    if data_type == "text":
        return value
    if data_type == "boolean":
        return {"true": True, "false": False}.get(str(value).lower())
    if data_type == "timestamp with time zone":
        if not isinstance(value, str) or not is_time(value):
            return None
        time = datetime.fromisoformat(value)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    text = value if isinstance(value, str) else json.dumps(value)
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", text):
        return None
    exact = Decimal(text)
    if data_type == "bigint":
        return int(exact) if -(2**63) <= exact < 2**63 and exact % 1 == 0 else None
    return exact


def agrees(stored: Any, value: Any, data_type: str) -> bool:
    """Return whether a column's value equals the expected value; the spelling of JSON and numbers does not count."""
    wanted = fits(value, data_type)
    if stored is None or wanted is None:
        return stored is wanted
    if data_type != "text":
        return type(stored) is type(wanted) and stored == wanted
    if isinstance(wanted, str):
        return stored == wanted
    if isinstance(wanted, bool | dict | list):
        return json.loads(stored) == wanted
    return Decimal(stored) == number(wanted)
