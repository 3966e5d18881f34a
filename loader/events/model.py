"""Defines the results of parsing: an event to land, or a refused message with its reason.

These are plain values, independent of files, HTTP and the database.
"""

from datetime import datetime
from enum import StrEnum

import msgspec


class Reason(StrEnum):
    """The reason of a refusal: Segment's code for its own discards, if Segment has a code for the reason."""

    INVALID_JSON = "invalid_json"
    INVALID_UTF8 = "invalid_utf8"
    TRUNCATED_LINE = "truncated_line"
    NOT_OBJECT = "not_object"
    TOO_DEEP = "too_deep"
    LINE_TOO_LONG = "line_too_long"
    NUL_CHARACTER = "nul_character"
    LONE_SURROGATE = "lone_surrogate"
    REFUSED_BY_DATABASE = "refused_by_database"
    BAD_REQUEST = "bad_request"
    NO_USER_ANON_ID = "no_user_anon_id"
    ID_NOT_STRING = "id_not_string"
    EVENT_NOT_DEFINED = "event_not_defined"
    EVENT_NOT_STRING = "event_not_string"
    PROPERTIES_NOT_OBJECT = "properties_not_object"
    TRAITS_NOT_OBJECT = "traits_not_object"
    NAME_NOT_STRING = "name_not_string"
    CATEGORY_NOT_STRING = "category_not_string"
    EMPTY_BATCH = "empty_batch"
    EVENT_TOO_LARGE = "event_too_large"
    TOO_MANY_ITEMS = "too_many_items"
    BAD_ROW = "bad_row"


# Reasons of messages that are not a JSON object.
UNREADABLE = frozenset({Reason.INVALID_JSON, Reason.TRUNCATED_LINE, Reason.NOT_OBJECT, Reason.TOO_DEEP})


class RefusedError(Exception):
    """A message, or a body with several messages, cannot be read or cannot become an event.

    Args:
        reason: The code of the reason.
        detail: The exact reason, for people.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Event(msgspec.Struct, frozen=True, gc=False):
    """One accepted call, ready to land.

    Attributes:
        payload: The call as JSON. These are the bytes of the message without surrounding white space, or a call that
            was made from the message and that contains the message (`formats.sent_message`).
        offset: The offset of the line, in bytes of the decompressed file.
        message_id: The id of the event's row in every table.
        collection: The event's table; empty for an event without a table, None if the call is not a `track`.
        received_at: The time, with its offset from UTC, when a server first received the call; None for now.
    """

    payload: bytes
    offset: int
    message_id: str
    collection: str | None
    received_at: datetime | None


class Refused(msgspec.Struct, frozen=True, gc=False):
    """One message for the quarantine.

    Attributes:
        payload: The original bytes.
        offset: The offset of the message, in bytes of the decompressed file.
        reason: The code of the reason.
        detail: The exact reason, for people.
        repaired: Whether the event landed as well, with U+FFFD for characters that JSON text in PostgreSQL cannot
            hold. The quarantine keeps the original.
    """

    payload: bytes
    offset: int
    reason: Reason
    detail: str
    repaired: bool = False


class Delivery(msgspec.Struct, gc=False):
    """The messages of one request, which get one answer.

    Attributes:
        source: The schema name of the source.
        entrance: The entrance of the messages, for the quarantine.
        events: The events to land.
        refused: The messages for the quarantine. Offsets distinguish the messages of one delivery only.
        received_at: The time of the request.
        is_corrected: Whether that time is of the database's clock, and not of the receiving machine's clock.
    """

    source: str
    entrance: str
    events: list[Event]
    refused: list[Refused]
    received_at: datetime
    is_corrected: bool = True

    @property
    def size(self) -> int:
        """Bytes of all messages of the delivery."""
        size = 0
        for event in self.events:
            size += len(event.payload)
        for refused in self.refused:
            size += len(refused.payload)
        return size
