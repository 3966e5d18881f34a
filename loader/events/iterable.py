"""Converts Iterable's own events, from webhooks and exports, to the `track` calls that Segment would have sent.

Iterable gives its events no id, so this module makes an id from the parts that distinguish events. The parts are the
kind, the user, the second of the event, and the fields of `_IDENTITY` that have a value. Webhooks and exports both
carry these parts. An event that arrives twice, or through both entrances, is therefore one row. Nothing in this module
does I/O.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from loader.events.iterable_types import BOOLEANS, DOCUMENTS, NUMBERS, SEGMENT_EVENTS, known_kind
from loader.events.json_parts import split_object
from loader.events.json_text import SUSPICIOUS, decode, parse_text, read_elements, strip_body
from loader.events.model import Event, Reason, Refused, RefusedError
from loader.events.segment import collection_of
from loader.events.timestamps import iso_text, read_moment

_Fields = dict[str, Any]

# The fields that identify a message, a device and a link. A field counts even if only one entrance carries it, as an
# export has no `browserToken`. Two rows for one event can be recognized later, but one row for two events is a loss.
_MESSAGE = (
    "campaignId messageId platformEndpoint browserToken deviceInfo clickedUrl hrefIndex ip userAgent fromPhoneNumber"
    " toPhoneNumber"
).split()
_LISTS = ["channelIds", "messageTypeIds", "userListIds"]
# The fields that distinguish the events of a kind. For a kind that is absent here, all fields count.
_IDENTITY = dict.fromkeys(SEGMENT_EVENTS, _MESSAGE) | {
    "smsReceived": [*_MESSAGE, "smsMessage"],
    "emailSubscribe": ["signupSource", *_LISTS],
    "emailUnSubscribe": ["campaignId", "messageId", "channelId", "unsubSource", *_LISTS],
}

# Kinds for which Segment has the IP address and the user agent, and has both in the context.
_WITH_CLIENT = frozenset({"emailOpen", "emailClick", "hostedUnsubscribeClick", "smsClick"})
_SYSTEMS = re.compile("Windows|iPhone|iPad|iPod|Android|Mac OS X|CrOS|Linux")
_SYSTEM_NAMES = {"iPhone": "iOS", "iPad": "iOS", "iPod": "iOS", "CrOS": "Chrome OS"}

# Kinds of messages that the user sent. The user's phone number is the sender's for these kinds, and the recipient's
# for all other kinds.
_INBOUND = frozenset({"smsReceived", "whatsAppReceived"})

_INTEGRATION = {"name": "Iterable", "version": "1.0.0"}
_LIBRARY = {"name": "unknown", "version": "unknown"}

_NULL = Raw(b"null")
_ABSENT = Raw()
_INTERNAL = "itblInternal"
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+|((?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?))")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")


class _UsualBody(msgspec.Struct, gc=False, rename="camel"):
    """The body of a webhook with one event, whose fields have the documented types."""

    event_name: str
    user_id: str | None = None
    email: str | None = None
    data_fields: dict[str, Raw] = {}


class _Body(msgspec.Struct, gc=False, rename="camel"):
    """The body of a webhook with one event, of any types."""

    event_name: Raw = _ABSENT
    user_id: Raw = _ABSENT
    email: Raw = _ABSENT
    data_fields: Raw = _ABSENT


class _Told(NamedTuple):
    """The kind, the user and the properties of an event, as read from a message."""

    kind: str
    user_id: Raw | str | None
    email: Raw | str | None
    fields: _Fields


_decode_usual_body = msgspec.json.Decoder(_UsualBody).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
# A number with a fraction or an exponent stays text, because a float might not be exact.
_decode_value = msgspec.json.Decoder(float_hook=str).decode
_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


def parse_webhook(body: bytes, offset: int = 0) -> list[Event | Refused]:
    """Turn the body of one request into events.

    Args:
        body: One event as Iterable's system webhooks send it, or an array of them.
        offset: The offset of the body, if the body is one of many. The offsets of the elements count from it.

    Returns:
        An `Event` for a message that can land, and a `Refused` with the bytes of a message that cannot land. A message
        that lands with replaced characters gives both, and its `Refused` is marked `repaired`. An invalid element does
        not affect the other elements.
    """
    text = strip_body(body)
    if not text:
        return [Refused(body, offset, Reason.INVALID_JSON, "the body is empty")]
    if not text.startswith(b"["):
        return parse_text(text, offset, _webhook_event)
    try:
        elements = read_elements(text)
    except RefusedError as error:
        return [Refused(body, offset, error.reason, error.detail)]
    messages: list[Event | Refused] = []
    position = body.index(text)
    for element in elements:
        position = body.index(element, position)
        messages += parse_text(element, offset + position, _webhook_event)
        position += len(element)
    return messages


def parse_export(line: bytes, offset: int, kind: str) -> list[Event | Refused]:
    """Turn one row of an export into an event.

    Args:
        line: A flat JSON object, without its newline. A blank line gives an empty list.
        offset: The offset of the line, in bytes of the decompressed file.
        kind: The kind of the events in the file, Iterable's `dataTypeName`.

    Returns:
        The event or the refusal of the row, or both, as `parse_webhook` describes.
    """
    return parse_text(line, offset, partial(_exported_event, kind=kind))


def parse_export_lines(data: bytes, offset: int, kind: str) -> list[Event | Refused]:
    """Turn lines of an export into events, each line as `parse_export` does.

    Args:
        data: Lines, each with its newline. The last line may lack the newline.
        offset: The offset of the first line, in bytes of the decompressed file.
        kind: The kind of the events in the file.
    """
    make_event = partial(_exported_event, kind=kind)
    messages: list[Event | Refused] = []
    for line in data.split(b"\n"):
        messages += parse_text(line, offset, make_event)
        offset += len(line) + 1
    return messages


def sent_text(payload: bytes) -> bytes:
    """Return the text of the message that a call was made from."""
    return bytes((split_object(payload) or {}).get("native", payload))


def _webhook_event(text: bytes, offset: int) -> Event:
    return _event(text, offset, _read_body(text))


def _exported_event(text: bytes, offset: int, kind: str) -> Event:
    if not text.startswith(b"{"):
        raise RefusedError(Reason.BAD_ROW, "neither a JSON object nor a row that fits the file's header")
    return _event(text, offset, _read_row(text, kind))


def _read_body(text: bytes) -> _Told:
    """Return a webhook's kind, user id, e-mail and properties."""
    try:
        usual = _decode_usual_body(text)
    except (msgspec.MsgspecError, RecursionError):
        return _read_unusual_body(text)
    return _Told(usual.event_name, usual.user_id, usual.email, _without_nulls(usual.data_fields))


def _read_unusual_body(text: bytes) -> _Told:
    """Return the same of a body with fields of other types, or raise the reason why the body is no event."""
    body = decode(_decode_body, text)
    if body.event_name in (_ABSENT, _NULL):
        raise RefusedError(Reason.EVENT_NOT_DEFINED, "the body has no eventName")
    kind = _value(body.event_name)
    if not isinstance(kind, str):
        raise RefusedError(Reason.EVENT_NOT_STRING, "eventName must be a string")
    if body.data_fields in (_ABSENT, _NULL):
        return _Told(kind, body.user_id, body.email, {})
    try:
        fields = decode(_decode_fields, bytes(body.data_fields))
    except RefusedError:
        raise RefusedError(Reason.PROPERTIES_NOT_OBJECT, "dataFields must be an object") from None
    return _Told(kind, body.user_id, body.email, _without_nulls(fields))


def _without_nulls(fields: dict[str, Raw]) -> _Fields:
    return {name: value for name, value in fields.items() if value != _NULL}


def _read_row(text: bytes, kind: str) -> _Told:
    """Return the kind, user id, e-mail and properties of an exported row.

    The properties get the objects and types that a webhook has: dotted names become objects, and text becomes typed
    values.
    """
    fields: _Fields = {}
    for name, value in decode(_decode_fields, text).items():
        if value == _NULL or name.partition(".")[0] == _INTERNAL:
            continue
        typed = _typed(name, value)
        *outer, last = name.split(".")
        place = fields
        for step in outer:
            inner = place.setdefault(step, {})
            if not isinstance(inner, dict):
                # The row has a value and an object of the same name, so the dotted name stays.
                place, last = fields, name
                break
            place = inner
        if isinstance(place.get(last), dict):
            place, last = fields, f"{name}."
        place[last] = typed
    return _Told(kind, fields.get("userId", _ABSENT), fields.get("email", _ABSENT), fields)


def _typed(name: str, value: Raw) -> Raw:
    """Convert an exported text to the number, boolean or JSON document that a webhook has for this property.

    A property without a known type, and a text that does not fit the type, stay unchanged.
    """
    if name not in NUMBERS and name not in BOOLEANS and name not in DOCUMENTS:
        return value
    text = _value(value)
    if not isinstance(text, str):
        return value
    if name in NUMBERS:
        number = _NUMBER.fullmatch(text)
        return Raw(f"{number[1]}{number[2] or ''}".encode()) if number else value
    if name in BOOLEANS:
        return Raw(text.lower().encode()) if text.lower() in ("true", "false") else value
    document = text.strip().encode()
    if document[:1] in (b"{", b"[") and not SUSPICIOUS.search(document):
        with suppress(msgspec.MsgspecError, RecursionError, ValueError):
            _decode_value(document)
            return Raw(document)
    return value


def _event(text: bytes, offset: int, told: _Told) -> Event:
    """Make the event with its `track` call from the parts of a message."""
    fields = told.fields
    kind = known_kind(told.kind) or told.kind
    address = _identifier("email", told.email) or _identifier("email", fields.get("email"))
    user = _identifier("userId", told.user_id) or _identifier("userId", fields.get("userId"))
    anonymous = None if user else address or _phone_number(kind, fields)
    if not (user or anonymous):
        raise RefusedError(Reason.NO_USER_ANON_ID, "neither userId nor email nor a phone number")

    created = _value(fields.get("createdAt", _ABSENT))
    moment = read_moment(created)
    second = moment.replace(microsecond=0) if moment and moment.microsecond else moment
    # The e-mail has precedence over the user id, because every entrance has the e-mail. The user id is often missing.
    happened = [kind.lower(), address or user or anonymous, second or str(created)]
    message_id = _message_id(kind, happened if kind in _IDENTITY else [*happened, user], fields)

    traits: _Fields = {"email": address} if address else {}
    context: _Fields = {"integration": _INTEGRATION, "library": _LIBRARY, "traits": traits}
    # The column `user_id` belongs to the call's own `userId`.
    properties = fields.copy()
    properties.pop("userId", None)
    if kind in _WITH_CLIENT:
        _move_client(properties, context)
    if address:
        properties.setdefault("email", address)
    event = SEGMENT_EVENTS.get(kind, kind)
    call = {
        "type": "track",
        "messageId": message_id,
        "event": event,
        "userId" if user else "anonymousId": user or anonymous,
        **_time_of_call(created, moment),
        "context": context,
        "properties": properties,
        "native": Raw(text),
    }
    return Event(_encode(call), offset, message_id, collection_of(event), None)


def _time_of_call(created: object, moment: datetime | None) -> _Fields:
    """Return the call's timestamp; an unreadable time stays as it is, so that a run reports it as a mismatch."""
    if moment:
        return {"timestamp": iso_text(moment)}
    is_told = isinstance(created, str | int | float) and not isinstance(created, bool) and created != ""
    return {"timestamp": created} if is_told else {}


def _move_client(properties: _Fields, context: _Fields) -> None:
    """Move the IP address and the user agent to the context, and add the operating system."""
    if "ip" in properties:
        context["ip"] = properties.pop("ip")
    if "userAgent" in properties:
        context["userAgent"] = properties.pop("userAgent")
        if system := _SYSTEMS.search(str(_value(context["userAgent"]))):
            context["os"] = {"name": _SYSTEM_NAMES.get(system[0], system[0])}


def _identifier(name: str, value: object) -> str | None:
    """Return an id of a user as text; None if the field is absent or empty.

    Raises:
        RefusedError: The value is neither a string nor an integer.
    """
    found = _value(value)
    if found is None or found == "":
        return None
    if type(found) not in (str, int):
        raise RefusedError(Reason.ID_NOT_STRING, f"{name} must be a string")
    return str(found)


def _phone_number(kind: str, fields: _Fields) -> str | None:
    """Return the user's phone number, which identifies a user without other ids; None if there is no number."""
    names = ["toPhoneNumber", "fromPhoneNumber"]
    for name in reversed(names) if kind in _INBOUND else names:
        if name in fields and (number := _identifier(name, fields[name])):
            return number
    return None


def _message_id(kind: str, happened: Sequence[object], fields: Mapping[str, Any]) -> str:
    """Return the id of an event, which is the same at every entrance."""
    names = _IDENTITY.get(kind)
    if names is None:
        content = _contents(fields, [name for name in fields if name not in ("createdAt", "email", "userId")])
    else:
        content = _contents(fields, names)
        # `url` is Iterable's name for a link, and `linkUrl` is Segment's. Only webhooks carry both.
        if url := _canonical(fields.get("url")) or _canonical(fields.get("linkUrl")):
            content["url"] = url
        if lists := _list_ids(fields):
            content["lists"] = lists
    return "iterable-" + hashlib.sha256(_encode_sorted([*happened, content])).hexdigest()[:32]


def _contents(fields: Mapping[str, Any], names: Iterable[str]) -> _Fields:
    """Return the named fields that have a value, in their canonical form."""
    return {name: value for name in names if name in fields and (value := _canonical(fields[name])) is not None}


def _list_ids(fields: Mapping[str, Any]) -> list[str] | None:
    """Return the ids of an event's lists; an export may name a single list `emailListId`."""
    if "emailListIds" not in fields and "emailListId" not in fields:
        return None
    several = _canonical(fields.get("emailListIds"))
    one = _canonical(fields.get("emailListId"))
    listed = {*map(str, several if isinstance(several, list) else [several]), str(one)} - {"None"}
    return sorted(listed) or None


def _canonical(value: object) -> Any:
    """Return a value in a form that does not depend on its notation; None for an empty value.

    Text and numbers have one form, because a CSV file does not distinguish them. Null, the empty string, and empty
    lists and objects also have one form.
    """
    if isinstance(value, Raw):
        value = _value(value)
    if value is None:
        return None
    # Most values are text that stays as it is: it is no list, no object, and not a number such as 1.0.
    if type(value) is str and value[:1] not in ("", "{", "[") and not value.endswith("0"):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return {k: c for k, inner in value.items() if (c := _canonical(inner)) is not None} or None
    if isinstance(value, list):
        return [_canonical(inner) for inner in value] or None
    text = str(value)
    if not text:
        return None
    if text[:1] in ("{", "["):
        with suppress(msgspec.MsgspecError, RecursionError, ValueError):
            return _canonical(_decode_value(text.encode()))
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _value(value: object) -> Any:
    """Decode a field; a field that Python cannot hold gives its JSON text."""
    if not isinstance(value, Raw):
        return value
    try:
        return _decode_value(value)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return bytes(value).decode() or None
