"""Describes the likely format of a file without events, and suggests how to load it."""

import csv
from collections.abc import Sequence

import msgspec

from loader.events.iterable_types import known_kind

_DELIMITERS = ",;\t|"
_NAMES_SHOWN = 5
# Top-level fields that only rows of Iterable have.
_ITERABLE_FIELDS = frozenset({"createdAt", "itblInternal", "campaignId", "dataTypeName", "eventName", "dataFields"})
_SEGMENT_FIELDS = frozenset({"messageId", "userId", "anonymousId", "properties", "context"})


def describe_lines(lines: Sequence[bytes], *, export: bool) -> str:
    """Return a sentence about the format that lines without events seem to have, and the option or tool for it.

    Args:
        lines: The first lines of the file that are not blank.
        export: Whether the lines were read as an export of Iterable, and not as tracking calls.
    """
    first = lines[0].removeprefix(b"\xef\xbb\xbf").strip() if lines else b""
    if first.startswith(b"["):
        return "The content looks like a JSON array: `jq -c '.[]'` writes one object a line."
    if first.startswith(b"{"):
        return _describe_objects(first, export=export)
    if first.startswith(b"<"):
        return "The content looks like XML or HTML."
    names = _column_names(first)
    if len(names) > 1:
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
        advice = "" if export else " An export of Iterable is loaded with --format iterable-export."
        return f"The content looks like CSV with the columns {shown}.{advice}"
    return "The content looks like text, not like lines of JSON."


def _describe_objects(first: bytes, *, export: bool) -> str:
    try:
        document = msgspec.json.decode(first)
    except (msgspec.MsgspecError, RecursionError):
        return "The content looks like JSON over several lines, or damaged: `jq -c .` writes one object a line."
    fields = set(document) if isinstance(document, dict) else set()
    if export and fields & _SEGMENT_FIELDS:
        return "The content looks like tracking calls, which are loaded without --format."
    if not export and fields & _ITERABLE_FIELDS:
        named = document.get("dataTypeName", document.get("eventName"))
        kind = known_kind(named) if isinstance(named, str) else None
        option = f"--format iterable-export --type {kind}" if kind else "--format iterable-export"
        return f"The content looks like an export of Iterable, which is loaded with {option}."
    names = sorted(fields)[:_NAMES_SHOWN]
    return f"The content looks like JSON objects of another kind, with {', '.join(names) or 'no fields'}."


def _column_names(first: bytes) -> list[str]:
    text = first.decode(errors="replace")
    delimiter = max(_DELIMITERS, key=text.count)
    try:
        rows = list(csv.reader([text], delimiter=delimiter))
    except csv.Error:
        return []
    return [name.strip() for name in rows[0]] if rows else []
