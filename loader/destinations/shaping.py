"""Decides which calls a destination gets, and gives each call its shape.

The values of a call keep their bytes, so a number such as `1.10` reaches the receiver unchanged. Nothing in this module
does I/O.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from typing import Any

import msgspec

from loader.destinations.filters import Condition, Filters
from loader.destinations.model import Call
from loader.events.json_parts import Fields, join_object
from loader.events.json_text import read_elements, read_fields
from loader.events.via import add_via
from loader.raw.delivery_windows import LandedCall

# Fields that the receiver sets, and fields that only a sender of this instance needs.
_LEFT_OUT = ("receivedAt", "sentAt", "writeKey")
_LEFT_OUT_OF_LOGS = ("writeKey",)
# The parts of a call whose values `only` lists.
_PARTS = ("properties", "traits", "context")
_ABSENT = msgspec.Raw(b"null")
_MISSING = object()
_UNREADABLE = object()
_decode_text = msgspec.json.Decoder(str).decode


class Shaper:
    """Filters and shapes the calls of one destination.

    Args:
        filters: The filters of the destination.
        name: The name of the destination, for the call's own `integrations`.
        kind: The kind of the destination, likewise.
        mark: The id of this warehouse, which each call gets in `context.via`; empty for no mark.
        replayed: Patterns for the names of the only events that a replay sends; empty for all.
    """

    def __init__(self, filters: Filters, name: str, kind: str, mark: str = "", replayed: Sequence[str] = ()) -> None:
        self._filters = filters
        self._names = (name.casefold(), kind.casefold())
        self._is_log = kind == "files"
        self._mark = mark
        self._events = _pattern(filters.events)
        self._exclude = _pattern(filters.exclude)
        self._replayed = _pattern(replayed)
        self._only = _tree(filters.only)
        self._conditions = [(condition, condition.path.split(".")) for condition in filters.where]
        self._changes: list[tuple[list[str], Callable[[bytes], bytes | None]]] = [
            *((path.split("."), _drop) for path in filters.drop),
            *((path.split("."), _hash) for path in filters.hash),
        ]

    def shape(self, landed: LandedCall) -> Call | None:
        """Return the call that the destination gets; None if the filters keep it back."""
        fields = read_fields(landed.payload) or {}
        kind, event = _text(fields.get("type")) or "track", _text(fields.get("event"))
        user = _text(fields.get("userId")) or _text(fields.get("anonymousId")) or landed.message_id
        if not self._admits(landed.source, kind, event, user, fields):
            return None
        if self._names[1] == "iterable" and is_from_iterable(landed.message_id, fields):
            return None
        for name in _LEFT_OUT_OF_LOGS if self._is_log else _LEFT_OUT:
            fields.pop(name, None)
        if event in self._filters.rename:
            fields["event"] = msgspec.Raw(msgspec.json.encode(self._filters.rename[event]))
        if self._only:
            _keep_only(fields, self._only)
        for path, change in self._changes:
            _change(fields, path, change)
        fields["messageId"] = msgspec.Raw(msgspec.json.encode(landed.message_id))
        if self._is_log:
            # As in Segment's raw logs, a reader of the file need not correct the time again.
            fields["receivedAt"] = _quoted(landed.received_at)
            if "timestamp" in fields:
                fields.setdefault("originalTimestamp", fields["timestamp"])
        if landed.timestamp is not None:
            fields["timestamp"] = _quoted(landed.timestamp)
        if self._mark:
            add_via(fields, self._mark)
        native = fields.pop("native", None)
        slim = join_object(fields)
        keeps_native = native is not None and self._filters.native
        body = join_object(fields | {"native": native}) if keeps_native and native is not None else slim
        return Call(
            seq=landed.seq,
            load_xid=landed.load_xid,
            source=landed.source,
            message_id=landed.message_id,
            user=user,
            received_at=landed.received_at,
            body=body,
            slim=slim if keeps_native else None,
        )

    def admits_source(self, source: str) -> bool:
        """Return whether the destination gets calls of a source."""
        return not self._filters.sources or source in self._filters.sources

    def _admits(self, source: str, kind: str, event: str, user: str, fields: Fields) -> bool:
        filters = self._filters
        if not self.admits_source(source) or (filters.types and kind not in filters.types):
            return False
        if self._replayed and not (kind == "track" and self._replayed.fullmatch(event)):
            return False
        if kind == "track" and self._events and not self._events.fullmatch(event):
            return False
        if kind == "track" and self._exclude and self._exclude.fullmatch(event):
            return False
        return (
            all(_meets(fields, condition, path) for condition, path in self._conditions)
            and (filters.sample >= 1 or _share(user) < filters.sample)
            and self._is_wanted(fields.get("integrations", _ABSENT))
        )

    def _is_wanted(self, integrations: msgspec.Raw) -> bool:
        """Return whether the call's own `integrations` admit this destination, as Segment reads them."""
        if bytes(integrations) in {b"null", b"{}"}:
            return True
        chosen = read_fields(bytes(integrations)) or {}
        own = [value for name, value in chosen.items() if name.casefold() in self._names]
        if any(bytes(value) == b"false" for value in own):
            return False
        return bytes(chosen.get("All", b"true")) != b"false" or any(bytes(v) not in {b"null", b"false"} for v in own)


def is_from_iterable(message_id: str, fields: Fields) -> bool:
    """Return whether a call came from Iterable; its own marks decide, and it never goes back there."""
    if "native" in fields or message_id.startswith("iterable-"):
        return True
    context = read_fields(bytes(fields.get("context", b"null"))) or {}
    integration = read_fields(bytes(context.get("integration", b"null"))) or {}
    return _text(integration.get("name")).casefold() == "iterable"


def _pattern(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(translate(glob) for glob in globs)) if globs else None


def _text(value: msgspec.Raw | None) -> str:
    """Return a value that is a string; an empty text for any other value."""
    if value is None:
        return ""
    try:
        return _decode_text(value)
    except msgspec.ValidationError:
        return ""


def _quoted(time: str) -> msgspec.Raw:
    """Return a time as JSON; a time needs no escapes."""
    return msgspec.Raw(b'"%b"' % time.encode())


def _share(user: str) -> float:
    """Return the place of a user between 0 and 1, the same in each process."""
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8]) / 2**64


def _meets(fields: Fields, condition: Condition, path: Sequence[str]) -> bool:
    value = find_value(fields, path)
    expected: Any = condition.value
    match condition.op:
        case "exists":
            return value is not _MISSING and value is not None
        case "=":
            return bool(value == expected) and isinstance(value, bool) == isinstance(expected, bool)
        case "!=":
            return bool(value != expected) or isinstance(value, bool) != isinstance(expected, bool)
        case "in":
            return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in expected)
        case _:
            return _is_ordered(value, expected) and (value < expected if condition.op == "<" else value > expected)


def _is_ordered(value: object, expected: object) -> bool:
    numbers = isinstance(value, int | float) and isinstance(expected, int | float)
    return (numbers and not isinstance(value, bool)) or (isinstance(value, str) and isinstance(expected, str))


def find_value(fields: Fields, path: Sequence[str]) -> Any:
    """Return the decoded value at a path of a call; values of their own kinds if there is none, or none can be read."""
    for key in path[:-1]:
        fields = read_fields(bytes(fields.get(key, b"null"))) or {}
    value = fields.get(path[-1])
    if value is None:
        return _MISSING
    try:
        return json.loads(bytes(value))
    except (ValueError, RecursionError):
        # Python reads no number of thousands of digits, and no value that is nested so deep.
        return _UNREADABLE


def _drop(_: bytes) -> None:
    return None


def _hash(value: bytes) -> bytes:
    """Return the SHA-256 of a value's text, trimmed and in lower case."""
    text = json.loads(value) if value.startswith(b'"') else value.decode()
    if text == "null":
        return value
    return b'"%b"' % hashlib.sha256(text.strip().lower().encode()).hexdigest().encode()


def _change(fields: Fields, path: Sequence[str], change: Callable[[bytes], bytes | None]) -> None:
    """Change the value at a path of an object; a list on the way stands for each of its elements."""
    key, *rest = path
    if key not in fields:
        return
    changed = _changed(bytes(fields[key]), rest, change)
    if changed is None:
        del fields[key]
    else:
        fields[key] = msgspec.Raw(changed)


def _changed(value: bytes, path: Sequence[str], change: Callable[[bytes], bytes | None]) -> bytes | None:
    if not path and change is _drop:
        return None
    if value.startswith(b"["):
        parts = [_changed(element, path, change) for element in read_elements(value)]
        return b"[%b]" % b",".join(part for part in parts if part is not None)
    if not path:
        return change(value)
    inner = read_fields(value) if value.startswith(b"{") else None
    if inner is None:
        return value
    _change(inner, path, change)
    return join_object(inner)


_Tree = dict[str, Any]


def _tree(paths: Sequence[str]) -> _Tree:
    """Return paths as nested dictionaries; an empty dictionary stands for a whole value."""
    tree: _Tree = {}
    for path in paths:
        place = tree
        for key in path.split("."):
            place = place.setdefault(key, {})
    return tree


def _keep_only(fields: Fields, tree: _Tree) -> None:
    for part in _PARTS:
        if part in fields:
            fields[part] = msgspec.Raw(_kept(bytes(fields[part]), tree[part]) if part in tree else b"{}")


def _kept(value: bytes, tree: _Tree) -> bytes:
    if not tree:
        return value
    if value.startswith(b"["):
        return b"[%b]" % b",".join(_kept(element, tree) for element in read_elements(value))
    fields = read_fields(value) if value.startswith(b"{") else None
    if fields is None:
        return b"{}"
    return join_object({key: msgspec.Raw(_kept(bytes(fields[key]), tree[key])) for key in tree if key in fields})
