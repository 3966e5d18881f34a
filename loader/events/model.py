"""What the loader passes from parsing to landing: an event, or a message refused with its reason.

These are plain values with no knowledge of files, HTTP or the database.
"""

from datetime import datetime
from enum import StrEnum

import msgspec


class Reason(StrEnum):
    """Why a message was refused; the codes Segment shows for its own discards where it has one."""

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


class Event(msgspec.Struct, frozen=True, gc=False):
    """One accepted call, ready to land.

    Attributes:
        payload: The call as JSON: the message byte for byte as it came (white space around it aside), or made of it.
        offset: Where its line begins, in bytes of the decompressed file.
        message_id: The id of its row in every table.
        collection: The table it belongs to; empty for an event without one, None when the call is not a `track`.
        received_at: When a server first received it, with its offset; None for now.
        original: The message as it came, where the payload was made of it; empty where it is the payload.
    """

    payload: bytes
    offset: int
    message_id: str
    collection: str | None
    received_at: datetime | None
    original: bytes = b""


class Refused(msgspec.Struct, frozen=True, gc=False):
    """One message for the quarantine.

    Attributes:
        payload: The original bytes.
        offset: Where they begin, in bytes of the decompressed file.
        reason: Why.
        detail: What exactly, for a person.
        repaired: The event landed all the same, with the characters JSON text cannot hold replaced by U+FFFD; what
            is kept is the original.
    """

    payload: bytes
    offset: int
    reason: Reason
    detail: str
    repaired: bool = False


class Delivery(msgspec.Struct, gc=False):
    """Messages that came together, from one sender, and are answered together.

    Attributes:
        source: The schema name of their source.
        entrance: Where they came in, for the quarantine.
        events: Those to land.
        refused: Those for the quarantine; the offsets of both tell messages of one delivery apart, and no others.
        received_at: When they came.
        is_corrected: That time is by the database's clock; otherwise by the clock of the machine that took them.
    """

    source: str
    entrance: str
    events: list[Event]
    refused: list[Refused]
    received_at: datetime
    is_corrected: bool = True

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        size = 0
        for event in self.events:
            size += len(event.payload) + len(event.original)
        for refused in self.refused:
            size += len(refused.payload)
        return size
