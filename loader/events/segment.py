"""Parses Segment's tracking calls from bytes into events.

A line of a file holds one call (https://segment.com/docs/connections/spec/common/). This module reads only the few
fields that decide where an event lands, and PostgreSQL checks the JSON of the whole call. `parse_line` reads an unusual
line a second time, more slowly. Nothing in this module does I/O.
"""

import hashlib
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from loader.events.json_text import SUSPICIOUS, decode, is_utf8, parse_text, read_elements, strip_body
from loader.events.model import UNREADABLE, Event, Reason, Refused, RefusedError
from loader.events.naming import table_name
from loader.events.written_keys import blank_write_keys, take_write_key

# Longest message id that Segment keeps, in characters.
MESSAGE_ID_LENGTH = 100

# Prefix of the ids that this module makes for lines without an id.
MADE_ID = "loader-"

# Longest event name whose table name is cached, in characters.
_KNOWN_LENGTH = 200

# Reasons of refusals of messages that are not calls.
_NOT_A_CALL = UNREADABLE | {Reason.BAD_REQUEST}

_CALLS = frozenset({"track", "identify", "page", "screen", "group", "alias"})


class _Object(msgspec.Struct, gc=False):
    """Any JSON object: the decoder skips the fields of an object, and refuses any other value."""


class _Integrations(msgspec.Struct, gc=False):
    """The part of a call's integrations that may keep the call out of this warehouse."""

    warehouses: msgspec.Raw | UnsetType = msgspec.field(name="Warehouses", default=UNSET)


class UsualCall(msgspec.Struct, gc=False, rename="camel"):
    """The fields of a call that decide where the call lands, with their usual types.

    The decoder skips all other fields and builds no objects for them.
    """

    type: str | None = None
    event: str | None = None
    message_id: str | None = None
    user_id: str | None = None
    anonymous_id: str | None = None
    received_at: datetime | None = None
    properties: _Object | None = None
    traits: _Object | None = None
    integrations: _Integrations | None = None
    # The decoder refuses a call with a write key, because the key must be removed first.
    write_key: _Object | UnsetType = UNSET


class _LooseCall(msgspec.Struct, gc=False, rename="camel"):
    """The same fields with any type, so that a refusal names the wrong field."""

    type: Any = None
    event: Any = None
    message_id: Any = None
    user_id: Any = None
    anonymous_id: Any = None
    previous_id: Any = None
    received_at: Any = None
    name: Any = None
    category: Any = None
    properties: msgspec.Raw = msgspec.Raw()
    traits: msgspec.Raw = msgspec.Raw()
    integrations: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct, gc=False, rename="camel"):
    """The warehouses that a call names for itself."""

    all: Any = None
    warehouse_ids: Any = None


_known_table = lru_cache(maxsize=4096)(table_name)
_decode_usual = msgspec.json.Decoder(UsualCall).decode
_decode_loose = msgspec.json.Decoder(_LooseCall).decode
_decode_integrations = msgspec.json.Decoder(_Integrations).decode
_decode_choice = msgspec.json.Decoder(_Choice).decode


def parse_lines(data: bytes, offset: int, warehouse_id: str = "") -> list[Event | Refused]:
    """Turn lines into events, or into refusals with a reason; blank lines are skipped.

    Args:
        data: Lines, each with its newline. The last line may lack the newline.
        offset: The offset of the first line, in bytes of the decompressed file.
        warehouse_id: The id of this warehouse in calls; if empty, the ids in calls do not count.

    Returns:
        An `Event` for a call that can land, and a `Refused` for a line that cannot land. A call that lands with
        replaced characters gives both, and its `Refused` is marked `repaired`. An invalid line does not affect the
        other lines.
    """
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    all_text = is_utf8(data)
    messages: list[Event | Refused] = []
    for line in lines:
        try:
            # The decoder gets one line at a time. Decoding many lines at once takes less time, but then the decoder
            # accepts two objects on a line, and one object on two lines. The later lines would get wrong ids.
            call = _decode_usual(line) if all_text or is_utf8(line) else None
        except (msgspec.MsgspecError, RecursionError):
            call = None
        if call is not None and (event := event_of(call, line, offset)):
            messages.append(event)
        else:
            messages.extend(parse_line(line, offset, warehouse_id))
        offset += len(line) + 1
    return messages


def event_of(call: UsualCall, line: bytes, offset: int) -> Event | None:
    """Return the event of a complete `track` call without anything unusual.

    Args:
        call: The call.
        line: The line of the call, which is valid UTF-8.
        offset: The offset of the line, in bytes of the decompressed file.

    Returns:
        The event; None if `parse_line` must read the line.
    """
    if (
        call.type == "track"
        and (event := call.event) is not None
        and len(event) <= _KNOWN_LENGTH
        and (call.user_id or call.anonymous_id)
        and (message_id := call.message_id)
        and len(message_id) <= MESSAGE_ID_LENGTH
        and ((received_at := call.received_at) is None or received_at.tzinfo)
        and (call.integrations is None or call.integrations.warehouses is UNSET)
        and line.startswith(b"{")
        and (b"\\" not in line or not SUSPICIOUS.search(line))
    ):
        return Event(line, offset, message_id, _known_table(event), received_at)
    return None


def parse_webhook(body: bytes, offset: int = 1, warehouse_id: str = "") -> list[Event | Refused]:
    """Turn the body of one request of Segment's webhooks into events.

    Args:
        body: A call, or an array of calls.
        offset: The number of the first call; each further call has the next number.
        warehouse_id: The id of this warehouse, as for `parse_lines`.

    Returns:
        The events and refusals of the calls, as from `parse_lines`.
    """
    text = strip_body(body)
    try:
        elements = read_elements(text) if text.startswith(b"[") else [text]
    except RefusedError as error:
        return [Refused(blank_write_keys(body), offset, error.reason, error.detail)]
    return [
        message
        for number, element in enumerate(elements, offset)
        for message in parse_line(element, number, warehouse_id)
    ]


def parse_line(line: bytes, offset: int, warehouse_id: str = "") -> list[Event | Refused]:
    """Turn one line into an event or a refusal; slower than `event_of`, but with the exact reason of a refusal.

    Args:
        line: The line without its newline.
        offset: The offset of the line, in bytes of the decompressed file.
        warehouse_id: The id of this warehouse, as for `parse_lines`.

    Returns:
        The event, the refusal, or both, as in the list from `parse_lines`.
    """
    _, keyless = take_write_key(line)
    messages = parse_text(keyless, offset, lambda text, offset: _event(text, offset, line, warehouse_id))
    return [_without_keys(message) if type(message) is Refused else message for message in messages]


def _event(text: bytes, offset: int, line: bytes, warehouse_id: str) -> Event:
    call = decode(_decode_loose, text)
    if wrong := _wrong(call):
        raise RefusedError(*wrong)
    is_served = _type_of(call) == "track" and not _is_excluded(call.integrations, warehouse_id)
    return Event(
        payload=text,
        offset=offset,
        message_id=_message_id(call.message_id, line, offset),
        collection=collection_of(call.event) if is_served else None,
        received_at=_read_time(call.received_at) if isinstance(call.received_at, str) else None,
    )


def _without_keys(refused: Refused) -> Refused:
    """Remove the write keys from a message that is not a call, because calls inside the message may have keys."""
    if refused.reason not in _NOT_A_CALL:
        return refused
    return msgspec.structs.replace(refused, payload=blank_write_keys(refused.payload))


def _wrong(call: _LooseCall) -> tuple[Reason, str] | None:
    """Return the reason why a call cannot land, in the order of Segment's checks; None if the call can land."""
    kind = _type_of(call)
    if kind not in _CALLS:
        return Reason.BAD_REQUEST, f"type must be one of {', '.join(sorted(_CALLS))}"
    if kind == "track":
        if call.event is None:
            return Reason.EVENT_NOT_DEFINED, "a track call needs an event"
        if not isinstance(call.event, str):
            return Reason.EVENT_NOT_STRING, f"event is {_json_type(call.event)}"
    for name, value in (("userId", call.user_id), ("anonymousId", call.anonymous_id)):
        if value is not None and not isinstance(value, str):
            return Reason.ID_NOT_STRING, f"{name} is {_json_type(value)}"
    if not (call.user_id or call.anonymous_id or (kind == "alias" and call.previous_id)):
        return Reason.NO_USER_ANON_ID, "neither userId nor anonymousId"
    if kind in {"page", "screen"}:
        for name, value, reason in (
            ("name", call.name, Reason.NAME_NOT_STRING),
            ("category", call.category, Reason.CATEGORY_NOT_STRING),
        ):
            if value is not None and not (isinstance(value, str) and value):
                return reason, f"{name} is {'empty' if value == '' else _json_type(value)}"
    if not _is_object(call.properties):
        return Reason.PROPERTIES_NOT_OBJECT, "properties must be an object"
    if not _is_object(call.traits):
        return Reason.TRAITS_NOT_OBJECT, "traits must be an object"
    return None


def _type_of(call: _LooseCall) -> str | None:
    """Return the type of a call; a call with an event but without a type is a track call, as on `/v1/track`."""
    if call.type is None and call.event is not None:
        return "track"
    return call.type if isinstance(call.type, str) else None


def _is_excluded(integrations: msgspec.Raw, warehouse_id: str) -> bool:
    """Return whether the integrations of a call keep the call out of this warehouse.

    `{"Warehouses": {"all": false}}` excludes every warehouse, and `{"Warehouses": {"warehouseIds": [...]}}` every
    warehouse that the list lacks. `{"All": false}` excludes no warehouse.
    https://segment.com/docs/connections/spec/common/#integrations

    Args:
        integrations: The unchanged bytes of the field.
        warehouse_id: The id of this warehouse; if empty, the list does not count.
    """
    try:
        warehouses = _decode_integrations(integrations).warehouses
        choice = _Choice() if warehouses is UNSET else _decode_choice(warehouses)
    except (msgspec.MsgspecError, RecursionError):
        return False
    if warehouse_id and isinstance(choice.warehouse_ids, list):
        return warehouse_id not in choice.warehouse_ids
    return choice.all is False


def _is_object(raw: msgspec.Raw) -> bool:
    """Return whether a field of unknown type is absent, null or an object."""
    return bytes(memoryview(raw)[:1]) in (b"", b"{", b"n")


def _json_type(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), "not a string")


def collection_of(event: str) -> str:
    """Return the name of an event's table; empty if the event's name gives no table name."""
    # The cache has a limited size, and most names are few and short. Long names would only use memory.
    return _known_table(event) if len(event) <= _KNOWN_LENGTH else table_name(event)


def _read_time(value: str) -> datetime | None:
    """Return a time that has an offset from UTC; None for any other text."""
    # PostgreSQL writes an offset of whole hours without minutes, so exports from PostgreSQL contain such offsets.
    for text in (value, value + "00"):
        with suppress(msgspec.ValidationError):
            moment = msgspec.convert(text, datetime)
            if moment.tzinfo:
                return moment
    return None


def _message_id(given: object, line: bytes, offset: int) -> str:
    """Return the call's own message id, or make an id that is the same whenever the same line is read again."""
    if isinstance(given, str) and 0 < len(given) <= MESSAGE_ID_LENGTH:
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given) if abs(given) < 10**MESSAGE_ID_LENGTH else _hashed(str(given))
    if isinstance(given, str) and given:
        return _hashed(given)
    return _hashed(f"{offset}:", line)


def _hashed(text: str, line: bytes = b"") -> str:
    return MADE_ID + hashlib.sha256(text.encode() + line).hexdigest()[:32]
