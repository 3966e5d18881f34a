"""Names the entrances of messages, and calls the parser of each; a retry from quarantine uses the same entrance."""

from loader.events.iterable import parse_export, parse_export_lines, parse_webhook, sent_text
from loader.events.model import Event, Refused
from loader.events.segment import parse_line, parse_lines
from loader.events.segment import parse_webhook as parse_segment_webhook
from loader.events.tracking_api import parse_kept

# Files of tracking calls.
FILE = "file"
# The tracking API: batches, and calls that contain their type.
TRACKING = "tracking"
# Segment's webhook destinations.
SEGMENT_WEBHOOK = "segment-webhook"
# Iterable's system webhooks.
ITERABLE_WEBHOOK = "iterable-webhook"

_CALL = "tracking:"
_EXPORT = "iterable-export:"


def call_entrance(kind: str) -> str:
    """Return the entrance of bodies with one call, whose type is only in the path of the request."""
    return _CALL + kind


def export_entrance(kind: str) -> str:
    """Return the entrance of export files with one kind of event."""
    return _EXPORT + kind


def exported_kind(entrance: str) -> str | None:
    """Return the kind of event of an entrance for export files; None for any other entrance."""
    return entrance.removeprefix(_EXPORT) if entrance.startswith(_EXPORT) else None


def parse_message(entrance: str, payload: bytes, offset: int, warehouse_id: str = "") -> list[Event | Refused]:
    """Parse a message, or a body with several messages, of any size.

    Args:
        entrance: The entrance of the message. Entrances without a name in this module have tracking calls.
        payload: The message.
        offset: The offset of the message in its file; for the body of a webhook, the number of its first call.
        warehouse_id: The id that calls name this warehouse by; empty where the ids in calls do not count.
    """
    if entrance == ITERABLE_WEBHOOK:
        return parse_webhook(payload, offset)
    if entrance == SEGMENT_WEBHOOK:
        return parse_segment_webhook(payload, offset, warehouse_id)
    if entrance == TRACKING or entrance.startswith(_CALL):
        return parse_kept(payload, entrance.removeprefix(TRACKING).removeprefix(":"), warehouse_id)
    if kind := exported_kind(entrance):
        return parse_export(payload, offset, kind)
    return parse_line(payload, offset, warehouse_id)


def sent_message(entrance: str, payload: bytes) -> bytes:
    """Return the bytes of the message that became an event with this payload, as the sender wrote the message.

    Args:
        entrance: The entrance of the message.
        payload: The payload of the event.
    """
    return sent_text(payload) if entrance == ITERABLE_WEBHOOK or exported_kind(entrance) else payload


def parse_chunk(entrance: str, data: bytes, offset: int, warehouse_id: str = "") -> list[Event | Refused]:
    """Parse lines of a file.

    Args:
        entrance: The entrance of the file.
        data: Lines with their newlines; the last line may have none.
        offset: The offset of the first line, in bytes of the decompressed file.
        warehouse_id: As `parse_message` has it.
    """
    kind = exported_kind(entrance)
    return parse_export_lines(data, offset, kind) if kind else parse_lines(data, offset, warehouse_id)
