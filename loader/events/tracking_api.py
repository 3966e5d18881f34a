"""The tracking API's bodies, from bytes to events: one call, or a batch of them.

What a request says of all its calls (their type, when they were sent, the context they share) and the id the server
gives to a call without one are put in front of the call's own fields. Of two fields of one name, PostgreSQL's jsonb and
the parser here both keep the last, so a call's own word wins, and its bytes stay as they came.

https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/
"""

import secrets
import sys
from dataclasses import dataclass
from itertools import count

import msgspec

from loader.events.json_parts import Fields, join_object, split_array, split_object
from loader.events.json_text import explain, is_utf8, read_fields, strip_body
from loader.events.model import Event, Reason, Refused
from loader.events.segment import UsualCall, event_of, parse_line, parse_lines
from loader.events.written_keys import may_have_write_key, read_write_key, take_write_key

# What the paths of single calls end with, long and short, and those of batches.
CALLS = {"t": "track", "i": "identify", "p": "page", "s": "screen", "g": "group", "a": "alias"}
BATCHES = ("batch", "import", "b")

# What ids begin with that this process gives.
_ID_OF_PROCESS = b"api-%b" % secrets.token_hex(12).encode()
_numbers = count()
_ABSENT = (b"", b"null")


@dataclass(frozen=True)
class Limits:
    """How much a request may hold, decompressed; Segment's own numbers unless somebody sets others.

    Attributes:
        event_bytes: Bytes of one call.
        batch_bytes: Bytes of a batch's whole body.
        batch_items: Calls in a batch.
    """

    event_bytes: int = 32_768
    batch_bytes: int = 500_000
    batch_items: int = 2_500


_UNLIMITED = Limits(sys.maxsize, sys.maxsize, sys.maxsize)


class BadRequestError(Exception):
    """A body nothing can be taken from.

    Args:
        code: Why.
        message: What exactly, for the sender.
    """

    def __init__(self, code: Reason, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Batch(msgspec.Struct, rename="camel"):
    """A batch's body; its calls are not looked into yet."""

    batch: list[msgspec.Raw]
    write_key: str | None = None
    sent_at: msgspec.Raw = msgspec.Raw()
    context: msgspec.Raw = msgspec.Raw()
    integrations: msgspec.Raw = msgspec.Raw()


class _Context(msgspec.Struct, gc=False):
    """Of a call's context, what asks for the client's address."""

    direct: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _WholeCall(UsualCall, gc=False, rename="camel"):
    """A call to a path that says it is a `track` call, and what would have to be done to it."""

    type: str | None = "track"
    context: _Context | None = None


class _Type(msgspec.Struct):
    """A call's own type."""

    type: str | None = None


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_whole = msgspec.json.Decoder(_WholeCall).decode
_decode_type = msgspec.json.Decoder(_Type).decode
_decode_fields = msgspec.json.Decoder(Fields).decode


class Call(msgspec.Struct, gc=False):
    """One call as it came, and what was put in front of it.

    Attributes:
        line: The call, complete.
        write_key: The key it carries itself; empty when it carries none.
        excess: Why it cannot be taken whatever it says.
    """

    line: bytes
    write_key: str = ""
    excess: tuple[Reason, str] | None = None


def read_call(body: bytes, kind: str, limits: Limits) -> Call:
    """Read the body of a request with one call.

    Args:
        body: The body, decompressed.
        kind: What the path says it is, e.g. `track`; its own `type` counts for nothing.
        limits: How much it may hold.

    Raises:
        BadRequestError: It is no JSON object.
    """
    text = strip_body(body)
    if not text.startswith(b"{"):
        raise BadRequestError(*explain(_decode_fields, text))
    write_key, text = take_write_key(text)
    line = _complete(text, b'{"type":"%b","messageId":"%b",' % (kind.encode(), new_message_id()))
    # A letter of a name may be written as its number.
    may_have_type = b'"type"' in text or b"\\u00" in text
    if may_have_type and not _is_of_type(line, kind) and (fields := read_fields(line)):
        fields["type"] = msgspec.Raw(b'"%b"' % kind.encode())
        line = join_object(fields)
    return Call(line, write_key, _too_large(text, limits))


def read_whole_call(body: bytes, kind: str, limits: Limits) -> Event | None:
    """Read the body of a request with one `track` call that has everything a line of a file has.

    It lands as the bytes it came as; nothing needs to be put in front of it.

    Args:
        body: The body, decompressed.
        kind: What the path says it is.
        limits: How much it may hold.

    Returns:
        The event; None when `read_call` has to look at the body.
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
        body: The body, decompressed.
        limits: How much it may hold.

    Returns:
        The write key of the whole batch, empty when it has none, and its calls.

    Raises:
        BadRequestError: It is no JSON, holds no batch, or an empty one.
    """
    text = strip_body(body)
    try:
        read = _decode_batch(text)
    except (msgspec.MsgspecError, RecursionError):
        read = _split_batch(text)
    if not read.batch:
        raise BadRequestError(Reason.EMPTY_BATCH, "batch is empty")
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
            excess = (Reason.TOO_MANY_ITEMS, f"number {number + 1} of a batch; {limits.batch_items} are taken")
        calls.append(Call(line, write_key, excess))
    return read.write_key or "", calls


def parse_calls(calls: list[Call], offset: int, warehouse_id: str = "") -> tuple[list[Event], list[Refused]]:
    """Turn calls into events, and those that cannot be into refusals.

    Args:
        calls: The calls.
        offset: A number no other message has that is written with these; those up to the calls' length on are theirs.
        warehouse_id: The id that calls name this warehouse by; empty where the ids in calls do not count.

    Returns:
        The events, and the refusals; a call that lands repaired is in both.
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
        # JSON may be printed over several lines.
        for line in lines:
            messages.extend(parse_line(line, offset, warehouse_id))
            offset += len(line) + 1
    events = [message for message in messages if type(message) is Event]
    refused += [message for message in messages if type(message) is Refused]
    return [_received_now(event) for event in events], refused


def parse_kept(body: bytes, kind: str = "", warehouse_id: str = "") -> list[Event | Refused]:
    """Turn a body, or a call of one, that is in quarantine into events; no limit applies to it any more.

    Args:
        body: One call or a batch of them, as it came or corrected.
        kind: The type of the only call, where only the request's path said it.
        warehouse_id: As `parse_calls` has it.
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
    except BadRequestError as error:
        return [Refused(body, 1, error.code, error.message)]
    events, refused = parse_calls(calls, 1, warehouse_id)
    return [*events, *refused]


def _is_batch(text: bytes) -> bool:
    fields = split_object(text) or {}
    return bytes(fields.get("batch", b"")).startswith(b"[") and "type" not in fields


def _received_now(event: Event) -> Event:
    """Return an event received now: when, is for the server to say, not for its clients."""
    return msgspec.structs.replace(event, received_at=None) if event.received_at else event


def with_address(call: Call, address: str, *, client_side: bool) -> Call:
    """Add the client's address to a call's context where Segment does.

    That is for calls from a client's device, and for those that ask for it (`context.direct`); never over an address
    that is there, and never an IPv6 one.

    Args:
        call: The call.
        address: The client's IPv4 address.
        client_side: Whether a browser sent it.
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
    """Return an id for a call that brings none: one that no other call of any process has."""
    return b"%b%08x" % (_ID_OF_PROCESS, next(_numbers))


def _complete(text: bytes, front: bytes) -> bytes:
    """Put fields in front of an object's own."""
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
    return Reason.EVENT_TOO_LARGE, f"{len(text):,} bytes; {limits.event_bytes:,} are taken"


def _split_batch(text: bytes) -> _Batch:
    """Read a batch in which the decoder refuses something, so that a call which cannot be read is refused by itself.

    Raises:
        BadRequestError: It holds no calls, or their ends cannot be found.
    """
    fields = split_object(text) or {}
    batch = split_array(bytes(fields.get("batch", b"")))
    if not batch:
        reason, detail = explain(_decode_batch, text)
        expected = "expected an object with a list of calls in batch: " if reason == Reason.BAD_REQUEST else ""
        raise BadRequestError(reason, expected + detail)
    sent_at, context, integrations = (fields.get(n, msgspec.Raw()) for n in ("sentAt", "context", "integrations"))
    write_key = read_write_key(bytes(fields.get("writeKey", b"")))
    return _Batch([msgspec.Raw(item) for item in batch], write_key, sent_at, context, integrations)


def _merged(item: bytes, shared: Fields) -> bytes:
    """Add to an item's own fields what the batch has in its; what an item has as null it has not."""
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
