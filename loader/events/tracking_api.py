"""Parses the bodies of the tracking API from bytes into events: one call, or a batch of calls.

The loader puts additional fields in front of the call's own fields. They are the fields that a request gives for all
its calls (type, `sentAt`, shared context), and an id for a call without one. Of two fields with the same name,
PostgreSQL's jsonb and the parser here both keep the last. The call's own field therefore has precedence, and the bytes
of the call stay unchanged.

https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/
"""

import secrets
import sys
from dataclasses import dataclass
from itertools import count

import msgspec

from loader.events.json_parts import Fields, join_object, split_array, split_object
from loader.events.json_text import explain, is_utf8, read_fields, strip_body
from loader.events.model import Event, Reason, Refused, RefusedError
from loader.events.segment import UsualCall, event_of, parse_line, parse_lines
from loader.events.written_keys import may_have_write_key, read_write_key, take_write_key

# The last parts of the paths: the short and long names for single calls, and the names for batches.
CALLS = {"t": "track", "i": "identify", "p": "page", "s": "screen", "g": "group", "a": "alias"}
BATCHES = ("batch", "import", "b")

# Prefix of the message ids that this process makes.
_ID_OF_PROCESS = b"api-%b" % secrets.token_hex(12).encode()
_numbers = count()
_ABSENT = (b"", b"null")


@dataclass(frozen=True)
class Limits:
    """The largest decompressed sizes of a request; the defaults are Segment's own limits.

    Attributes:
        event_bytes: Largest size of one call, in bytes.
        batch_bytes: Largest size of a batch's whole body, in bytes.
        batch_items: Largest number of calls in a batch.
    """

    event_bytes: int = 32_768
    batch_bytes: int = 500_000
    batch_items: int = 2_500


_UNLIMITED = Limits(sys.maxsize, sys.maxsize, sys.maxsize)


class _Batch(msgspec.Struct, rename="camel"):
    """The body of a batch, with the unread bytes of its calls."""

    batch: list[msgspec.Raw]
    write_key: str | None = None
    sent_at: msgspec.Raw = msgspec.Raw()
    context: msgspec.Raw = msgspec.Raw()
    integrations: msgspec.Raw = msgspec.Raw()


class _Context(msgspec.Struct, gc=False):
    """The part of a call's context that may request the client's address."""

    direct: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _WholeCall(UsualCall, gc=False, rename="camel"):
    """A call to the path of `track` calls, with the fields that may require a change of the call."""

    type: str | None = "track"
    context: _Context | None = None


class _Type(msgspec.Struct):
    """The type that a call itself gives."""

    type: str | None = None


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_whole = msgspec.json.Decoder(_WholeCall).decode
_decode_type = msgspec.json.Decoder(_Type).decode
_decode_fields = msgspec.json.Decoder(Fields).decode


class Call(msgspec.Struct, gc=False):
    """One call of a request, with the fields that were put in front of its own fields.

    Attributes:
        line: The complete call.
        write_key: The write key in the call itself; empty if the call has none.
        excess: The reason and the detail of a refusal for an exceeded limit; None within the limits.
    """

    line: bytes
    write_key: str = ""
    excess: tuple[Reason, str] | None = None


def read_call(body: bytes, kind: str, limits: Limits) -> Call:
    """Read the body of a request with one call.

    Args:
        body: The decompressed body.
        kind: The type that the path names, e.g. `track`. The call's own `type` has no effect.
        limits: The largest sizes.

    Raises:
        RefusedError: The body is not a JSON object.
    """
    text = strip_body(body)
    if not text.startswith(b"{"):
        raise explain(_decode_fields, text)
    write_key, text = take_write_key(text)
    line = _complete(text, b'{"type":"%b","messageId":"%b",' % (kind.encode(), new_message_id()))
    # JSON allows a letter of a name to be written as an escape, such as `\u0074`.
    may_have_type = b'"type"' in text or b"\\u00" in text
    if may_have_type and not _is_of_type(line, kind) and (fields := read_fields(line)):
        fields["type"] = msgspec.Raw(b'"%b"' % kind.encode())
        line = join_object(fields)
    return Call(line, write_key, _too_large(text, limits))


def read_whole_call(body: bytes, kind: str, limits: Limits) -> Event | None:
    """Read the body of a request with one `track` call that is as complete as a line of a file.

    The call lands with its unchanged bytes, because it needs no additional fields.

    Args:
        body: The decompressed body.
        kind: The type that the path names.
        limits: The largest sizes.

    Returns:
        The event; None if `read_call` must read the body.
    """
    if kind != "track" or len(body) > limits.event_bytes or not is_utf8(body):
        return None
    try:
        call = _decode_whole(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if call.context and call.context.direct is not msgspec.UNSET:
        return None
    event = event_of(call, body, 1)
    return event and _received_now(event)


def read_batch(body: bytes, limits: Limits) -> tuple[str, list[Call]]:
    """Read the body of a request with several calls.

    Args:
        body: The decompressed body.
        limits: The largest sizes.

    Returns:
        The write key of the whole batch, and the calls. The key is empty if the batch has none.

    Raises:
        RefusedError: The body is not JSON, has no batch, or has an empty batch.
    """
    text = strip_body(body)
    try:
        read = _decode_batch(text)
    except (msgspec.MsgspecError, RecursionError):
        read = _split_batch(text)
    if not read.batch:
        raise RefusedError(Reason.EMPTY_BATCH, "batch is empty")
    shared: Fields = {
        name: value
        for name, value in (("sentAt", read.sent_at), ("context", read.context), ("integrations", read.integrations))
        if bytes(value) not in _ABSENT
    }
    front = _front(shared)
    base = new_message_id()
    may_have_keys = may_have_write_key(text)
    calls = []
    for number, raw in enumerate(read.batch):
        item = bytes(raw)
        if not item.startswith(b"{"):
            calls.append(Call(item))
            continue
        write_key, line = take_write_key(item) if may_have_keys else ("", item)
        if shared:
            line = _merged(line, shared)
        line = _complete(line, b'{"messageId":"%b-%d",%b' % (base, number, front))
        excess = _too_large(item, limits)
        if number >= limits.batch_items:
            excess = (
                Reason.TOO_MANY_ITEMS,
                f"call {number + 1} of a batch; a batch may have {limits.batch_items} calls",
            )
        calls.append(Call(line, write_key, excess))
    return read.write_key or "", calls


def parse_calls(calls: list[Call], offset: int, warehouse_id: str = "") -> tuple[list[Event], list[Refused]]:
    """Turn calls into events, or into refusals if they cannot land.

    Args:
        calls: The calls.
        offset: The first offset of the calls. Each call takes as many offsets as its line has bytes, and one more. No
            other message of the delivery may have one of these offsets.
        warehouse_id: The id of this warehouse in calls; if empty, the ids in calls do not count.

    Returns:
        The events and the refusals. A call that lands with replaced characters is in both lists.
    """
    lines = [call.line for call in calls if call.excess is None]
    refused: list[Refused] = []
    for call in calls:
        if call.excess:
            refused.append(Refused(call.line, offset, *call.excess))
            offset += len(call.line) + 1
    joined = b"\n".join(lines)
    messages: list[Event | Refused] = []
    if joined.count(b"\n") == len(lines) - 1:
        messages = parse_lines(joined, offset, warehouse_id)
    else:
        # A call may be JSON text of several lines, so each call is parsed by itself.
        for line in lines:
            messages.extend(parse_line(line, offset, warehouse_id))
            offset += len(line) + 1
    events = [message for message in messages if type(message) is Event]
    refused += [message for message in messages if type(message) is Refused]
    return [_received_now(event) for event in events], refused


def parse_kept(body: bytes, kind: str = "", warehouse_id: str = "") -> list[Event | Refused]:
    """Turn a quarantined body, or one call of a body, into events and refusals; no limit applies.

    Args:
        body: One call or a batch of calls, in original or corrected form.
        kind: The type of the only call, if only the path of the request gave it.
        warehouse_id: The id of this warehouse, as for `parse_calls`.
    """
    text = strip_body(body)
    try:
        if kind:
            calls = [read_call(text, kind, _UNLIMITED)]
        elif _is_batch(text):
            calls = read_batch(text, _UNLIMITED)[1]
        elif text.startswith(b"{"):
            calls = [Call(_complete(take_write_key(text)[1], b'{"messageId":"%b",' % new_message_id()))]
        else:
            calls = [Call(text)]
    except RefusedError as error:
        return [Refused(body, 1, error.reason, error.detail)]
    events, refused = parse_calls(calls, 1, warehouse_id)
    return [*events, *refused]


def _is_batch(text: bytes) -> bool:
    fields = split_object(text) or {}
    return bytes(fields.get("batch", b"")).startswith(b"[") and "type" not in fields


def _received_now(event: Event) -> Event:
    """Return an event without a time of receipt, because the server sets this time, and not its clients."""
    return msgspec.structs.replace(event, received_at=None) if event.received_at else event


def with_address(call: Call, address: str, *, client_side: bool) -> Call:
    """Add the client's address to the context of a call, in the same cases as Segment.

    These are the calls from a client's device, and the calls that request the address (`context.direct`). An address
    in the call stays unchanged, and an IPv6 address is never added.

    Args:
        call: The call.
        address: The client's IPv4 address.
        client_side: Whether a browser sent the call.
    """
    if not client_side and b'"direct"' not in call.line:
        return call
    fields = read_fields(call.line)
    context = None if fields is None else read_fields(bytes(fields.get("context", b"{}")))
    if fields is None or context is None:
        return call
    if "ip" in context or not (client_side or bytes(context.get("direct", b"")) == b"true"):
        return call
    context["ip"] = msgspec.Raw(msgspec.json.encode(address))
    fields["context"] = msgspec.Raw(join_object(context))
    return msgspec.structs.replace(call, line=join_object(fields))


def new_message_id() -> bytes:
    """Return a new message id for a call without one; no other call of any process has this id."""
    return b"%b%08x" % (_ID_OF_PROCESS, next(_numbers))


def _complete(text: bytes, front: bytes) -> bytes:
    """Return an object with additional fields in front of its own fields."""
    rest = text[1:]
    return front.removesuffix(b",") + rest if rest.lstrip().startswith(b"}") else front + rest


def _front(fields: Fields) -> bytes:
    return b"".join(b'"%b":%b,' % (name.encode(), bytes(value)) for name, value in fields.items())


def _is_of_type(line: bytes, kind: str) -> bool:
    try:
        return _decode_type(line).type == kind
    except (msgspec.MsgspecError, RecursionError):
        return False


def _too_large(text: bytes, limits: Limits) -> tuple[Reason, str] | None:
    if len(text) <= limits.event_bytes:
        return None
    return Reason.EVENT_TOO_LARGE, f"{len(text):,} bytes; a call may have {limits.event_bytes:,}"


def _split_batch(text: bytes) -> _Batch:
    """Read a batch that the decoder refuses, so that only the invalid calls are refused later.

    Raises:
        RefusedError: The batch has no calls, or the ends of the calls cannot be found.
    """
    fields = split_object(text) or {}
    batch = split_array(bytes(fields.get("batch", b"")))
    if not batch:
        error = explain(_decode_batch, text)
        expected = "expected an object with a list of calls in batch: " if error.reason == Reason.BAD_REQUEST else ""
        raise RefusedError(error.reason, expected + error.detail)
    sent_at, context, integrations = (fields.get(n, msgspec.Raw()) for n in ("sentAt", "context", "integrations"))
    write_key = read_write_key(bytes(fields.get("writeKey", b"")))
    return _Batch([msgspec.Raw(item) for item in batch], write_key, sent_at, context, integrations)


def _merged(item: bytes, shared: Fields) -> bytes:
    """Merge shared fields of a batch into the fields of the same name in an item.

    The fields of two objects are merged, and the item's own fields have precedence. A field of the item that is null
    counts as absent.
    """
    if not any(b'"%b"' % name.encode() in item for name in shared):
        return item
    fields = read_fields(item)
    if fields is None:
        return item
    for name in shared.keys() & fields.keys():
        own, theirs = bytes(fields[name]), bytes(shared[name])
        if own in _ABSENT:
            fields[name] = shared[name]
        elif own.startswith(b"{") and theirs.startswith(b"{"):
            inner, outer = read_fields(own), read_fields(theirs)
            if inner is None or outer is None:
                return item
            fields[name] = msgspec.Raw(join_object(outer | inner))
    return join_object(fields)
