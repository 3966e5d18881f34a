"""Finds new properties and types in the events of a collection.

Nearly all events have the properties of earlier events. The known properties of a collection are compiled into a
decoder, which checks an event at the speed of decoding. The compiled decoder may reject known events but never accepts
unknown ones; rejected events are inspected here, value by value. Nothing in this module does I/O.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Union

import msgspec

# Segment tracks the same number of properties of an event.
TRACKED_PROPERTIES = 10_000

BOOLEAN = "boolean"
BIGINT = "bigint"
NUMERIC = "numeric"
TIMESTAMP = "timestamp with time zone"
TEXT = "text"

Path = tuple[str, ...]

# The parts of an event that differ between events.
_ROOTS = ("properties", "context")

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1

# A valid date, a `T`, a time of day and an optional offset, within the limits of PostgreSQL. The compiled decoder uses
# the same expression.
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_TIMESTAMP = rf"""(?x)\A
    (?!0000)
    (?:
        [0-9]{{4}} - (?: (?:0[1-9]|1[0-2]) - (?:0[1-9]|1[0-9]|2[0-8])
                       | (?:0[13-9]|1[0-2]) - (?:29|30)
                       | (?:0[13578]|1[02]) - 31 )
        | {_LEAP_YEAR} - 02 - 29
    )
    T (?:[01][0-9]|2[0-3]) : [0-5][0-9] (?: : [0-5][0-9] (?: \.[0-9]{{1,12}} )? )?
    (?: Z | [+-] (?:0[0-9]|1[0-5]) (?: :?[0-5][0-9] )? )?
    \Z"""
_is_timestamp = re.compile(_TIMESTAMP).search

# Keys that cannot be the name of a field of a decoder.
_UNNAMEABLE = re.compile(r'["\\\x00-\x1f]').search
# A decoder compares a key with all fields of an object, one after the other. For objects with more fields than this, or
# nested deeper than this, the inspection of the values costs no more.
_DECODED_FIELDS = 500
_DECODED_DEPTH = 20


class UnknownField(msgspec.MsgspecError):
    """Raised for every event while a collection has no compiled decoder."""


class _Named(msgspec.Struct, gc=False):
    """The name of a call; the decoder skips all other fields."""

    event: str | None = None


class _Call(msgspec.Struct, gc=False):
    """The fields of a call that are inspected."""

    properties: Any = None
    context: Any = None


class _Node:
    """The known types and keys of the values under one key.

    Attributes:
        types: The recorded types; empty if all values were null or objects.
        children: By key, the nodes of the objects among the values; None if no value was an object.
    """

    __slots__ = ("children", "types")

    def __init__(self) -> None:
        self.types: set[str] = set()
        self.children: dict[str, _Node] | None = None


def _exact(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation:  # the exponent exceeds the limit of Decimal
        return Decimal("NaN")


_decode_named = msgspec.json.Decoder(_Named).decode
_decode_call = msgspec.json.Decoder(_Call, float_hook=_exact).decode


def type_of(value: Any) -> str | None:
    """Return the narrowest type that holds a decoded value.

    Args:
        value: The value, with numbers as int or Decimal.

    Returns:
        PostgreSQL's name of the type; None for null, which is not recorded.
    """
    kind = type(value)
    if kind is str:
        return TIMESTAMP if _is_timestamp(value) else TEXT
    if kind is int or kind is Decimal:
        whole = kind is int or value == value.to_integral_value()
        return BIGINT if whole and _SMALLEST <= value <= _LARGEST else NUMERIC
    if kind is bool:
        return BOOLEAN
    return None if value is None else TEXT


def covers(types: Collection[str], kind: str) -> bool:
    """Return whether a column for values of some types also holds values of another type without a wider type.

    Text holds all values, and numeric holds all integers. Covered types are not recorded.
    """
    return kind in types or TEXT in types or (kind == BIGINT and NUMERIC in types)


class Shape:
    """The known properties of the events of one collection.

    Attributes:
        decode: Accepts the payload of an event without new properties. Otherwise it raises a `MsgspecError` or a
            `RecursionError`, and `unknown_fields` returns the new properties, if any.
        tracked: The number of recorded paths.
        untracked: Whether the collection is recorded with more properties than are tracked.
        remembered: The number of known keys, including keys that only had null.
    """

    def __init__(self, properties: Iterable[tuple[Iterable[str], Iterable[str]]] = (), *, untracked: bool = False):
        self.decode: Callable[[bytes], object] = _refuse
        self.tracked = 0
        self.untracked = untracked
        self._root = _Node()
        self._root.children = {}
        self.remembered = 0
        self._changed = True
        self._misses = 0
        for root in _ROOTS:
            self._child(self._root, root).children = {}
        for path, types in properties:
            self.learn(path, types)

    def learn(self, path: Iterable[str], types: Iterable[str]) -> None:
        """Add a path with its recorded types to the known properties."""
        node = self._root
        for key in path:
            node = self._child(node, key)
        self.tracked += not node.types
        node.types.update(types)
        self._changed = True

    def knows(self, path: Path) -> bool:
        """Return whether a path is recorded with any type."""
        node: _Node | None = self._root
        for key in path:
            node = node.children.get(key) if node and node.children else None
        return bool(node and node.types)

    def unknown_fields(self, payload: bytes) -> Iterator[tuple[Path, str]]:
        """Inspect an event and yield each path and type that is not known, in the order of the event's keys.

        Objects are inspected to any depth. Arrays are values; empty objects and null are not. If properties or context
        is not an object, it is one value, whose path is the name of that part.

        Args:
            payload: The event as JSON.

        Raises:
            RecursionError: The event is nested too deep for the decoder.
        """
        call = _decode(payload)
        roots = {root: value for root in _ROOTS if (value := getattr(call, root)) is not None}
        stack: list[tuple[Iterator[tuple[str, Any]], Path, _Node | None]] = [(iter(roots.items()), (), self._root)]
        while stack:
            items, path, node = stack[-1]
            for key, value in items:
                child = None if node is None or node.children is None else node.children.get(key)
                if type(value) is dict:
                    if child is None or child.children is None:
                        child = self._notice(node, key, child, is_object=True)
                    stack.append((iter(value.items()), (*path, key), child))
                    break
                kind = type_of(value)
                if kind is None:
                    if child is None:
                        self._notice(node, key, None, is_object=False)
                elif child is None or not covers(child.types, kind):
                    yield (*path, key), kind
            else:
                stack.pop()

    def missed(self) -> None:
        """Count an event that `decode` refused, and compile a new decoder when its cost is justified.

        Compiling costs about as much for each path as the inspection of one event. So a decoder is compiled after as
        many inspections as there are known keys. A collection that always has new properties takes at most twice the
        time.
        """
        self._misses += 1
        if self._changed and self._misses > self.remembered:
            self._misses, self._changed = 0, False
            self.decode = _compile(self._root)

    def _notice(self, node: _Node | None, key: str, child: _Node | None, *, is_object: bool) -> _Node | None:
        """Remember a key that only had null or an object, without a type, so that the decoder accepts the key."""
        if node is None or node.children is None or self.remembered >= 2 * TRACKED_PROPERTIES:
            return child
        self._changed = True
        child = child or self._child(node, key)
        if is_object:
            child.children = {}
        return child

    def _child(self, node: _Node, key: str) -> _Node:
        if node.children is None:
            node.children = {}
        child = node.children.get(key)
        if child is None:
            child = node.children[key] = _Node()
            self.remembered += 1
        return child


def event_name(payload: bytes) -> str:
    """Return the name of a call's event, unchanged; an empty text without a name."""
    return _decode_named(payload).event or ""


def _decode(payload: bytes) -> _Call:
    """Decode the inspected fields of a call, with exact numbers."""
    with suppress(msgspec.ValidationError):
        return _decode_call(payload)
    # The call contains an integer with more digits than the decoder accepts.
    call = json.loads(payload, parse_int=_exact, parse_float=_exact)
    return _Call(call.get("properties"), call.get("context"))


def _refuse(payload: bytes) -> object:  # noqa: ARG001
    raise UnknownField


def _compile(root: _Node) -> Callable[[bytes], object]:
    """Return a decoder that accepts only payloads without new properties."""
    roots = [(key, _value_type(node, 0)) for key, node in (root.children or {}).items()]
    if None in dict(roots).values():
        return _refuse
    call = msgspec.defstruct("Call", [(key, kind, None) for key, kind in roots], gc=False)
    return msgspec.json.Decoder(call).decode


def _object_type(node: _Node, depth: int) -> Any:
    """Return a decoder's type for objects that have only known keys."""
    fields: list[tuple[str, Any, Any]] = []
    names: dict[str, str] = {}
    for key, child in (node.children or {}).items():
        value = None if _UNNAMEABLE(key) else _value_type(child, depth + 1)
        if value is not None:
            name = f"f{len(fields)}"
            fields.append((name, value, None))
            names[name] = key
    return msgspec.defstruct("Object", fields, rename=names, forbid_unknown_fields=True, gc=False)


def _value_type(node: _Node, depth: int) -> Any:
    """Return a decoder's type for the values that a known path covers; None if the decoder must refuse the path."""
    kinds: list[Any] = [None]
    if TEXT in node.types:
        kinds += [str, int, float, bool, list[msgspec.Raw]]
    else:
        if NUMERIC in node.types:
            kinds += [int, float]
        elif BIGINT in node.types:
            kinds.append(Annotated[int, msgspec.Meta(ge=_SMALLEST, le=_LARGEST)])
        if BOOLEAN in node.types:
            kinds.append(bool)
        if TIMESTAMP in node.types:
            kinds.append(Annotated[str, msgspec.Meta(pattern=_TIMESTAMP)])
    if node.children is not None:
        if depth > _DECODED_DEPTH or len(node.children) > _DECODED_FIELDS:
            return None
        kinds.append(_object_type(node, depth))
    return Union[tuple(kinds)]  # noqa: UP007 - made at run time
