"""What the events of a collection are made of: which properties they have, and of which types.

Nearly every event looks like one before it. So what is known of a collection is compiled into a decoder that takes an
event only when there is nothing new in it, at the speed of the decoder; an event it refuses is taken apart here, value
by value. The decoder is an opinion and this module the judge: when in doubt, it refuses. Nothing here does I/O.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Union

import msgspec

# Segment keeps track of as many properties of an event.
TRACKED_PROPERTIES = 10_000

BOOLEAN = "boolean"
BIGINT = "bigint"
NUMERIC = "numeric"
TIMESTAMP = "timestamp with time zone"
TEXT = "text"

Path = tuple[str, ...]

# The parts of an event that hold what differs from one to the next.
_ROOTS = ("properties", "context")

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1

# A day of the calendar, a `T`, a time of day and perhaps an offset, all of them as PostgreSQL can read them. The
# decoder looks at the values with the same expression.
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

# What no field of a decoder can be called.
_UNNAMEABLE = re.compile(r'["\\\x00-\x1f]').search
# A decoder looks for a field among all of an object's, one after the other; with more of them than this, and with
# objects in objects deeper than this, taking the event apart costs no more.
_DECODED_FIELDS = 500
_DECODED_DEPTH = 20


class UnknownField(msgspec.MsgspecError):
    """Raised in place of a decoder's error where there is no decoder."""


class _Named(msgspec.Struct, gc=False):
    """The name of a call; the rest is skipped, not built."""

    event: str | None = None


class _Call(msgspec.Struct, gc=False):
    """The fields of a call that are taken apart."""

    properties: Any = None
    context: Any = None


class _Node:
    """What is known of the values under one key.

    Attributes:
        types: The types they are recorded with; none for what is only ever null or an object.
        children: By key, what is known of the objects among them; None when there was none.
    """

    __slots__ = ("children", "types")

    def __init__(self) -> None:
        self.types: set[str] = set()
        self.children: dict[str, _Node] | None = None


def _exact(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent beyond all bounds
        return Decimal("NaN")


_decode_named = msgspec.json.Decoder(_Named).decode
_decode_call = msgspec.json.Decoder(_Call, float_hook=_exact).decode


def type_of(value: Any) -> str | None:
    """Return the narrowest type that holds a decoded value.

    Returns:
        The type as PostgreSQL calls it; None for null, which leaves no trace.
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
    """Say whether a column that holds values of some types holds those of another without becoming wider.

    What is covered is not recorded: text holds everything, numeric every integer.
    """
    return kind in types or TEXT in types or (kind == BIGINT and NUMERIC in types)


class Shape:
    """What is known of the events of one collection.

    Attributes:
        decode: Takes an event's payload when there is nothing new in it, otherwise raises a `MsgspecError` (or a
            `RecursionError`): then `unknown_fields` says what is new, if anything.
        tracked: How many paths are recorded.
        untracked: Recorded as having had more properties than are tracked.
        remembered: How many keys are known, those that only ever had null included.
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
        """Take note that a path is recorded with some types."""
        node = self._root
        for key in path:
            node = self._child(node, key)
        self.tracked += not node.types
        node.types.update(types)
        self._changed = True

    def knows(self, path: Path) -> bool:
        """Say whether a path is recorded, whatever its types."""
        node: _Node | None = self._root
        for key in path:
            node = node.children.get(key) if node and node.children else None
        return bool(node and node.types)

    def unknown_fields(self, payload: bytes) -> Iterator[tuple[Path, str]]:
        """Take an event apart and yield each path and type that is not known, in the order of its keys.

        Objects are followed to any depth, arrays are values. An empty object and null are no values.
        Properties or a context that is no object is one value, whose path is the name of that part.

        Raises:
            RecursionError: It is nested too deep.
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
        """Count an event that `decode` refused, and compile a new decoder once that pays.

        Compiling costs about as much for each path as taking an event apart, so it waits until as many events have been
        taken apart: a collection of ever new properties spends no more than twice the time.
        """
        self._misses += 1
        if self._changed and self._misses > self.remembered:
            self._misses, self._changed = 0, False
            self.decode = _compile(self._root)

    def _notice(self, node: _Node | None, key: str, child: _Node | None, *, is_object: bool) -> _Node | None:
        """Remember a key that only had null or an object, so that the decoder takes it; that claims nothing."""
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
    """Return the name of a call's event, as it came."""
    return _decode_named(payload).event or ""


def _decode(payload: bytes) -> _Call:
    """Decode what is taken apart of a call, its numbers exactly."""
    with suppress(msgspec.ValidationError):
        return _decode_call(payload)
    # An integer of more digits than the decoder takes.
    call = json.loads(payload, parse_int=_exact, parse_float=_exact)
    return _Call(call.get("properties"), call.get("context"))


def _refuse(payload: bytes) -> object:  # noqa: ARG001
    raise UnknownField


def _compile(root: _Node) -> Callable[[bytes], object]:
    """Return what takes the payloads in which nothing is new."""
    roots = [(key, _value_type(node, 0)) for key, node in (root.children or {}).items()]
    if None in dict(roots).values():
        return _refuse
    call = msgspec.defstruct("Call", [(key, kind, None) for key, kind in roots], gc=False)
    return msgspec.json.Decoder(call).decode


def _object_type(node: _Node, depth: int) -> Any:
    """Return the type of the objects that have no key but the known ones."""
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
    """Return the type of the values a known path covers; None for one the decoder had better refuse."""
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
