"""What JSON may hold and PostgreSQL's text may not, and what is wrong with bytes that are no JSON.

Every entrance treats text alike: bytes that are not UTF-8 are refused, an escape that no text can hold is replaced and
the original kept, and a message that cannot be read gets the same reason wherever it came in.
"""

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from loader.events.json_parts import Fields, split_array, split_object
from loader.events.model import Reason, Refused

T = TypeVar("T")

# Escapes that JSON allows and PostgreSQL's text does not: NUL, and halves of surrogate pairs without the other half.
# What follows a backslash that is itself escaped is no escape, but it can look like one, and like the other half of a
# pair: all of that matches too, and the careful path tells it apart.
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
    """Say whether bytes are text; the decoder does not look into the strings it skips."""
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def prepare(line: bytes, offset: int) -> tuple[bytes, Refused | None]:
    """Make a message's text fit for the database.

    Args:
        line: The message as it came.
        offset: Where it begins; at 0 it may have a byte order mark.

    Returns:
        The text without the white space around it, empty when there is nothing else, and a refusal: marked `repaired`
        when the text had to be changed, otherwise the message cannot be read at all.
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


def strip_body(body: bytes) -> bytes:
    """Return a body, or a whole file's text, without white space and byte order mark around it."""
    return body.strip().removeprefix(_BYTE_ORDER_MARK).strip()


def read_fields(text: bytes) -> Fields | None:
    """Return the members of an object, also of one that is only flawed or nested too deep for the decoder.

    Args:
        text: The object, without white space around it.

    Returns:
        The members, each value as it is written; None when the text is no JSON object.
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


def read_elements(text: bytes) -> list[bytes] | tuple[Reason, str]:
    """Return the elements of an array as they are written, or say why the text is none.

    Args:
        text: The array, without white space around it. An element that cannot be read costs its neighbours nothing.
    """
    try:
        return [bytes(element) for element in _decode_elements(text)]
    except (msgspec.MsgspecError, RecursionError):
        elements = split_array(text)
    return explain(_decode_elements, text) if elements is None else elements


def explain(decoder: Callable[[bytes], object], text: bytes) -> tuple[Reason, str]:
    """Say why a decoder cannot read a text; what would be repaired in it is never the reason."""
    prepared, flaw = prepare(text, 1)
    if flaw and not flaw.repaired:
        return flaw.reason, flaw.detail
    if not prepared:
        return Reason.INVALID_JSON, "the body is empty"
    found = decode(decoder, prepared)
    return found if isinstance(found, tuple) else (Reason.BAD_REQUEST, "there is nothing in it")


def decode(decoder: Callable[[bytes], T], text: bytes) -> T | tuple[Reason, str]:
    """Decode one object, or say why it is none."""
    try:
        return decoder(text)
    except msgspec.ValidationError as error:
        if text[:1] == b"{":
            # Only the loosely typed fields can get here: a number no machine float holds stands in one of them.
            return Reason.BAD_REQUEST, str(error)
        kind = "an array" if text[:1] == b"[" else "a single value"
        return Reason.NOT_OBJECT, f"expected one object a line, found {kind}"
    except msgspec.DecodeError as error:
        # A line cut short is an object that never closes, or a string that never ends.
        if text[:1] == b"{" and "truncated" in str(error):
            return Reason.TRUNCATED_LINE, str(error)
        return Reason.INVALID_JSON, str(error)
    except RecursionError:
        return Reason.TOO_DEEP, "nested too deep to read"


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
