"""Replaces characters that JSON allows and PostgreSQL's text does not, and finds the reason of invalid JSON.

All entrances treat text alike. Bytes that are not UTF-8 are refused. An escape that PostgreSQL's text cannot hold is
replaced, and the original is kept. A message that is not valid gets the same reason at every entrance.
"""

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from loader.events.json_parts import Fields, split_array, split_object
from loader.events.model import Event, Reason, Refused, RefusedError

T = TypeVar("T")

# Escapes that JSON allows and PostgreSQL's text does not: NUL, and halves of surrogate pairs without the other half.
# Characters after an escaped backslash are not an escape, but may look like one, or like the other half of a pair. They
# match too, and `_repair` distinguishes them.
SUSPICIOUS = re.compile(
    rb"""
    \\(?:
        \\u[dD][89a-fA-F]
        | u0000
        | u[dD][89abAB][0-9a-fA-F]{2} (?! \\u[dD][c-fC-F])
        | (?<! \\u[dD][89abAB][0-9a-fA-F]{2} \\) u[dD][c-fC-F]
    )
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_REPLACEMENT = rb"\ufffd"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


def is_utf8(data: bytes) -> bool:
    """Return whether bytes are valid UTF-8; the decoder does not check strings that it skips."""
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def prepare(line: bytes, offset: int) -> tuple[bytes, Refused | None]:
    """Replace characters of a message that the database's text cannot hold.

    Args:
        line: The bytes of the message.
        offset: The offset of the message; at 0 a byte order mark is removed.

    Returns:
        The text without surrounding white space, and a refusal or None. A refusal marked `repaired` means that the
        text was changed; any other refusal means that the message is not valid UTF-8.
    """
    text = strip_body(line) if offset == 0 else line.strip()
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return b"", Refused(line, offset, Reason.INVALID_UTF8, f"{error.reason} at byte {error.start}")
    text, flaw = _repair(text)
    if flaw is None:
        return text, None
    return text, Refused(line, offset, flaw, "landed with the character replaced by U+FFFD", repaired=True)


def parse_text(line: bytes, offset: int, make_event: Callable[[bytes, int], Event]) -> list[Event | Refused]:
    """Turn one message into an event or a refusal, by the function of its format.

    Args:
        line: The bytes of the message; white space alone gives an empty list.
        offset: The offset of the message, as for `prepare`.
        make_event: Makes the event from the prepared text and the offset, or raises `RefusedError`.

    Returns:
        The event or the refusal; both when the event lands with replaced characters.
    """
    text, flaw = prepare(line, offset)
    if flaw and not flaw.repaired:
        return [flaw]
    if not text:
        return []
    try:
        event = make_event(text, offset)
    except RefusedError as error:
        return [Refused(line, offset, error.reason, error.detail)]
    return [event, flaw] if flaw else [event]


def strip_body(body: bytes) -> bytes:
    """Remove surrounding white space and a byte order mark from a body, or from the text of a whole file."""
    return body.strip().removeprefix(_BYTE_ORDER_MARK).strip()


def read_fields(text: bytes) -> Fields | None:
    """Return the members of an object, even if it needs a repair or is nested too deep for the decoder.

    Args:
        text: The object, without surrounding white space.

    Returns:
        The members with the unchanged bytes of their values; None if the text is not a JSON object.
    """
    try:
        return _decode_fields(text)
    except RecursionError:
        return split_object(text)
    except msgspec.MsgspecError:
        repaired, flaw = _repair(text)
    if flaw is None:
        return None
    try:
        _decode_fields(repaired)
    except RecursionError:
        pass
    except msgspec.MsgspecError:
        return None
    return split_object(text)


def read_elements(text: bytes) -> list[bytes]:
    """Return the unchanged bytes of the elements of an array; an invalid element does not affect the other elements.

    Args:
        text: The array, without surrounding white space.

    Raises:
        RefusedError: The text is not an array.
    """
    try:
        return [bytes(element) for element in _decode_elements(text)]
    except (msgspec.MsgspecError, RecursionError):
        elements = split_array(text)
    if elements is None:
        raise explain(_decode_elements, text)
    return elements


def explain(decoder: Callable[[bytes], object], text: bytes) -> RefusedError:
    """Return the reason why a decoder refuses a text; a character that would be repaired is never the reason."""
    prepared, flaw = prepare(text, 1)
    if flaw and not flaw.repaired:
        return RefusedError(flaw.reason, flaw.detail)
    if not prepared:
        return RefusedError(Reason.INVALID_JSON, "the body is empty")
    try:
        decode(decoder, prepared)
    except RefusedError as error:
        return error
    return RefusedError(Reason.BAD_REQUEST, "the array is empty")


def decode(decoder: Callable[[bytes], T], text: bytes) -> T:
    """Decode one object.

    Raises:
        RefusedError: The text is not an object.
    """
    try:
        return decoder(text)
    except msgspec.ValidationError as error:
        if text[:1] == b"{":
            # Only a loosely typed field can cause this error: its number exceeds the range of a float.
            raise RefusedError(Reason.BAD_REQUEST, str(error)) from None
        kind = "an array" if text[:1] == b"[" else "a single value"
        raise RefusedError(Reason.NOT_OBJECT, f"expected one object a line, found {kind}") from None
    except msgspec.DecodeError as error:
        # A truncated line is an object without its closing bracket, or a string without its closing quote.
        if text[:1] == b"{" and "truncated" in str(error):
            raise RefusedError(Reason.TRUNCATED_LINE, str(error)) from None
        raise RefusedError(Reason.INVALID_JSON, str(error)) from None
    except RecursionError:
        raise RefusedError(Reason.TOO_DEEP, "nested too deep to read") from None


def _repair(text: bytes) -> tuple[bytes, Reason | None]:
    """Replace NUL and unpaired surrogate escapes, which no PostgreSQL text can hold, by U+FFFD."""
    if not SUSPICIOUS.search(text):
        return text, None
    flaw: Reason | None = None
    repaired = bytearray()
    last = 0
    escapes = list(_ESCAPE.finditer(text))
    paired = False
    for i, match in enumerate(escapes):
        if paired:
            paired = False
            continue
        code = int(match[1], 16) if match[1] else None
        if code is None or not (code == 0 or 0xD800 <= code <= 0xDFFF):
            continue
        if 0xD800 <= code <= 0xDBFF and i + 1 < len(escapes):
            after = escapes[i + 1]
            if after.start() == match.end() and after[1] and 0xDC00 <= int(after[1], 16) <= 0xDFFF:
                paired = True
                continue
        flaw = Reason.NUL_CHARACTER if code == 0 else flaw or Reason.LONE_SURROGATE
        repaired += text[last : match.start()] + _REPLACEMENT
        last = match.end()
    return (bytes(repaired + text[last:]), flaw) if flaw else (text, None)
