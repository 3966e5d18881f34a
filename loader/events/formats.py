"""Where messages come in, and what reads those of each: the quarantine remembers the entrance to read them again."""

from loader.events.iterable import parse_export, parse_export_lines, parse_webhook
from loader.events.model import Event, Refused
from loader.events.segment import parse_line, parse_lines
from loader.events.segment import parse_webhook as parse_segment_webhook
from loader.events.tracking_api import parse_kept

# Files of tracking calls.
FILE = "file"
# The tracking API: batches, and calls that say their type.
TRACKING = "tracking"
# Segment's webhook destinations.
SEGMENT_WEBHOOK = "segment-webhook"
# Iterable's system webhooks.
ITERABLE_WEBHOOK = "iterable-webhook"

_CALL = "tracking:"
_EXPORT = "iterable-export:"


def call_entrance(kind: str) -> str:
    """Return the entrance of bodies that hold one call, whose type only the path says."""
    return _CALL + kind


def export_entrance(kind: str) -> str:
    """Return the entrance of export files that hold one kind of event."""
    return _EXPORT + kind


def exported_kind(entrance: str) -> str | None:
    """Return the kind of event that comes in at an entrance for export files; None for any other entrance."""
    return entrance.removeprefix(_EXPORT) if entrance.startswith(_EXPORT) else None


def parse_message(entrance: str, payload: bytes, offset: int) -> list[Event | Refused]:
    """Read a message, or a body of several, as its entrance does; whatever its size.

    Args:
        entrance: Where it came in; at all but those named here there are tracking calls.
        payload: The message.
        offset: Where it began; of a webhook's body, the number of its first call.
    """
    if entrance == ITERABLE_WEBHOOK:
        return parse_webhook(payload, offset)
    if entrance == SEGMENT_WEBHOOK:
        return parse_segment_webhook(payload, offset)
    if entrance == TRACKING or entrance.startswith(_CALL):
        return parse_kept(payload, entrance.removeprefix(TRACKING).removeprefix(":"))
    if kind := exported_kind(entrance):
        return parse_export(payload, offset, kind)
    return list(parse_line(payload, offset))


def parse_chunk(entrance: str, data: bytes, offset: int) -> list[Event | Refused]:
    """Read the lines of a file as its entrance does.

    Args:
        entrance: Where the file came in.
        data: Lines, each with its newline but perhaps the last.
        offset: Where the first line begins, in bytes of the decompressed file.
    """
    kind = exported_kind(entrance)
    return parse_export_lines(data, offset, kind) if kind else parse_lines(data, offset)
