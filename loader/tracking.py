"""The tracking API's bodies, from bytes to events: one call, or a batch of them.

What a request says of all its calls (their type, when they were sent, the context they share) and the id the server
gives to a call without one are put in front of the call's own fields. Of two fields of one name, PostgreSQL's jsonb and
the parser here both keep the last, so a call's own word wins, and its bytes stay as they came.

https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/
"""

import re
import secrets
from dataclasses import dataclass
from itertools import count

import msgspec

from loader.encoding import is_utf8
from loader.events import Event, Reason, Refused
from loader.segment import UsualCall, event_of, parse_line, parse_lines

# What the paths of single calls end with, long and short, and those of batches.
CALLS = {"t": "track", "i": "identify", "p": "page", "s": "screen", "g": "group", "a": "alias"}
BATCHES = ("batch", "import", "b")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What ids begin with that this process gives.
_ID_OF_PROCESS = b"api-%b" % secrets.token_hex(12).encode()
_numbers = count()
_ABSENT = (b"", b"null")

# A write key in a body nobody can read.
_WRITTEN_KEY = re.compile(rb'("writeKey"\s*:\s*)"([^"\\]*)"')

_Fields = dict[str, msgspec.Raw]


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


class _Key(msgspec.Struct, rename="camel"):
    """A call's own write key."""

    write_key: str | None = None


class _Context(msgspec.Struct, gc=False):
    """Of a call's context, what asks for the client's address."""

    direct: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _WholeCall(UsualCall, gc=False, rename="camel"):
    """A call to a path that says it is a `track` call, and what would have to be done to it."""

    type: str | None = "track"
    write_key: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    context: _Context | None = None


class _Type(msgspec.Struct):
    """A call's own type."""

    type: str | None = None


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_key = msgspec.json.Decoder(_Key).decode
_decode_whole = msgspec.json.Decoder(_WholeCall).decode
_decode_type = msgspec.json.Decoder(_Type).decode
_decode_fields = msgspec.json.Decoder(_Fields).decode


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
    text = body.strip().removeprefix(_BYTE_ORDER_MARK).strip()
    if not text.startswith(b"{"):
        raise _unreadable(text)
    write_key = ""
    if _may_have(text, b'"writeKey"'):
        write_key, text = _without_key(text)
    line = _complete(text, b'{"type":"%b","messageId":"%b",' % (kind.encode(), new_message_id()))
    if _may_have(text, b'"type"') and not _is_of_type(line, kind):
        fields = _fields(line)
        fields["type"] = msgspec.Raw(b'"%b"' % kind.encode())
        line = msgspec.json.encode(fields)
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
    if call.write_key is not msgspec.UNSET or (call.context and call.context.direct is not msgspec.UNSET):
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
    text = body.strip().removeprefix(_BYTE_ORDER_MARK).strip()
    try:
        read = _decode_batch(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        _fields(text)
        raise BadRequestError(
            Reason.BAD_REQUEST, f"expected an object with a list of calls in batch: {error}"
        ) from None
    if not read.batch:
        raise BadRequestError(Reason.EMPTY_BATCH, "batch is empty")
    shared: _Fields = {
        name: value
        for name, value in (("sentAt", read.sent_at), ("context", read.context), ("integrations", read.integrations))
        if bytes(value) not in _ABSENT
    }
    front = _front(shared)
    base = new_message_id()
    calls = []
    for number, raw in enumerate(read.batch):
        item = bytes(raw)
        if not item.startswith(b"{"):
            calls.append(Call(item))
            continue
        write_key, line = _without_key(item) if _may_have(item, b'"writeKey"') else ("", item)
        if shared:
            line = _merged(line, shared)
        line = _complete(line, b'{"messageId":"%b-%d",%b' % (base, number, front))
        excess = _too_large(item, limits)
        if number >= limits.batch_items:
            excess = (Reason.TOO_MANY_ITEMS, f"number {number + 1} of a batch; {limits.batch_items} are taken")
        calls.append(Call(line, write_key, excess))
    return read.write_key or "", calls


def parse_calls(calls: list[Call], offset: int) -> tuple[list[Event], list[Refused]]:
    """Turn calls into events, and those that cannot be into refusals.

    Args:
        calls: The calls.
        offset: A number no other message has that is written with these; those up to the calls' length on are theirs.

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
        messages = parse_lines(joined, offset)
    else:
        # JSON may be printed over several lines.
        for line in lines:
            messages.extend(parse_line(line, offset))
            offset += len(line) + 1
    events = [message for message in messages if type(message) is Event]
    refused += [message for message in messages if type(message) is Refused]
    return [_received_now(event) for event in events], refused


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
    try:
        fields = _decode_fields(call.line)
        context = _decode_fields(fields.get("context", b"{}"))
    except (msgspec.MsgspecError, RecursionError):
        return call
    if "ip" in context or not (client_side or bytes(context.get("direct", b"")) == b"true"):
        return call
    context["ip"] = msgspec.Raw(msgspec.json.encode(address))
    fields["context"] = msgspec.Raw(msgspec.json.encode(context))
    return msgspec.structs.replace(call, line=msgspec.json.encode(fields))


def without_written_key(body: bytes) -> tuple[str, bytes]:
    """Find the write key in a body that is not JSON, or not a call's.

    Returns:
        The key, empty when there is none, and the body without it.
    """
    found = _WRITTEN_KEY.search(body)
    return (found[2].decode(errors="replace"), _WRITTEN_KEY.sub(rb'\1""', body)) if found else ("", body)


def new_message_id() -> bytes:
    """Return an id for a call that brings none: one that no other call of any process has."""
    return b"%b%08x" % (_ID_OF_PROCESS, next(_numbers))


def _complete(text: bytes, front: bytes) -> bytes:
    """Put fields in front of an object's own."""
    rest = text[1:]
    return front.removesuffix(b",") + rest if rest.lstrip().startswith(b"}") else front + rest


def _front(fields: _Fields) -> bytes:
    return b"".join(b'"%b":%b,' % (name.encode(), bytes(value)) for name, value in fields.items())


def _may_have(text: bytes, name: bytes) -> bool:
    """Say whether a field may be in a call; a letter of its name may be written as its number."""
    return name in text or b"\\u00" in text


def _is_of_type(line: bytes, kind: str) -> bool:
    try:
        return _decode_type(line).type == kind
    except (msgspec.MsgspecError, RecursionError):
        return False


def _too_large(text: bytes, limits: Limits) -> tuple[Reason, str] | None:
    if len(text) <= limits.event_bytes:
        return None
    return Reason.EVENT_TOO_LARGE, f"{len(text):,} bytes; {limits.event_bytes:,} are taken"


def _merged(item: bytes, shared: _Fields) -> bytes:
    """Add to an item's own fields what the batch has in its; what an item has as null it has not."""
    if not any(b'"%b"' % name.encode() in item for name in shared):
        return item
    try:
        fields = _decode_fields(item)
        for name in shared.keys() & fields.keys():
            own, theirs = bytes(fields[name]), bytes(shared[name])
            if own in _ABSENT:
                fields[name] = shared[name]
            elif own.startswith(b"{") and theirs.startswith(b"{"):
                fields[name] = msgspec.Raw(msgspec.json.encode(_decode_fields(theirs) | _decode_fields(own)))
    except (msgspec.MsgspecError, RecursionError):
        return item
    return msgspec.json.encode(fields)


def _without_key(text: bytes) -> tuple[str, bytes]:
    """Take the write key out of a call: of keys, only digests are kept."""
    try:
        write_key = _decode_key(text).write_key
        fields = _decode_fields(text)
    except (msgspec.MsgspecError, RecursionError):
        return "", text
    if fields.pop("writeKey", None) is None:
        return "", text
    return write_key or "", msgspec.json.encode(fields)


def _fields(text: bytes) -> _Fields:
    """Return the fields of an object.

    Raises:
        BadRequestError: It is none.
    """
    try:
        return _decode_fields(text)
    except (msgspec.MsgspecError, RecursionError):
        raise _unreadable(text) from None


def _unreadable(text: bytes) -> BadRequestError:
    """Say in the parser's own words why a body is no call."""
    found = next((m for m in parse_line(text, 1) if isinstance(m, Refused)), None)
    if found is None:
        return BadRequestError(Reason.INVALID_JSON, "the body is empty")
    return BadRequestError(found.reason, found.detail)
