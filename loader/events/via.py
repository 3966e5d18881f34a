"""Marks forwarded calls with the warehouses that have forwarded them, so that a ring of warehouses ends.

The mark is the list `context.via` of warehouse ids. A warehouse whose own id is in the list has had the call already.
"""

import json

import msgspec

from loader.events.json_parts import Fields, join_object
from loader.events.json_text import read_fields

_NAME = "via"


def add_via(fields: Fields, warehouse_id: str) -> None:
    """Add the id of a warehouse to the mark of a call, given by its members."""
    context = read_fields(bytes(fields.get("context", b"{}"))) or {}
    via = _read_via(context)
    if warehouse_id not in via:
        context[_NAME] = msgspec.Raw(msgspec.json.encode([*via, warehouse_id]))
        fields["context"] = msgspec.Raw(join_object(context))


def may_have_via(text: bytes) -> bool:
    """Return whether a text may contain the mark of a warehouse; False is certain for calls of this product."""
    return b'"via"' in text


def has_via(call: bytes, warehouse_id: str) -> bool:
    """Return whether a call has the mark of a warehouse."""
    fields = read_fields(call) or {}
    context = read_fields(bytes(fields.get("context", b"{}"))) or {}
    return warehouse_id in _read_via(context)


def _read_via(context: Fields) -> list[str]:
    value = bytes(context.get(_NAME, b"")).strip()
    if not value.startswith(b"["):
        return []
    return [mark for mark in json.loads(value) if isinstance(mark, str)]
