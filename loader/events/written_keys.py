"""Takes write keys out of calls: of a key, only its digest is kept.

A sender may write its key into the call or the batch (`writeKey`). The key must reach neither raw.events nor
raw.quarantine, also when the call cannot be read.
"""

import json
import re
from contextlib import suppress

from loader.events.json_parts import join_object
from loader.events.json_text import read_fields, strip_body

_NAME = "writeKey"


def _spelled(name: str) -> bytes:
    """Return an expression for a name in which any letter may be written as its number."""
    return b"".join(
        rb"(?:%b|\\u00%b)" % (letter.encode(), "".join(f"[{d}{d.upper()}]" for d in f"{ord(letter):02x}").encode())
        for letter in name
    )


# In a text that cannot be read: a name and a value, with or without quotes, which may be escaped or cut off.
_WRITTEN = re.compile(
    rb"""
    ( (?<![A-Za-z0-9_]) %b (?: \\*+["'] )?+ \s*+ [:=] \s*+ )
    (?: (\\*+["']) ((?: (?!\2) (?: [^\\] | \\. ) )*+) | (?! null ) ([^\s"'\\,;&{}\[\]]++) )
    """
    % _spelled(_NAME),
    re.VERBOSE | re.DOTALL,
)


def may_have_write_key(text: bytes) -> bool:
    """Say whether a write key may be in a text; a letter of the name may be written as its number."""
    return b"writeKey" in text or (b"\\" in text and b"\\u00" in text)


def take_write_key(text: bytes) -> tuple[str, bytes]:
    """Take the write key out of a call.

    Args:
        text: The call as it came.

    Returns:
        The key, empty when the call has none, and the call without it; the same bytes when it has none. A property of
        that name stays.
    """
    if not may_have_write_key(text):
        return "", text
    fields = read_fields(strip_body(text))
    if fields is None:
        return find_write_key(text), blank_write_keys(text)
    if _NAME not in fields:
        return "", text
    return read_write_key(bytes(fields.pop(_NAME))), join_object(fields)


def find_write_key(text: bytes) -> str:
    """Return the first write key in a text that cannot be read; empty when there is none."""
    found = _WRITTEN.search(text)
    if found is None:
        return ""
    return found[4].decode(errors="replace") if found[4] else read_write_key(b'"%b"' % found[3])


def blank_write_keys(text: bytes) -> bytes:
    """Return a text that cannot be read without the write keys in it."""
    return _WRITTEN.sub(rb"\1\2", text)


def read_write_key(written: bytes) -> str:
    """Return a write key that is written as JSON; empty when it is no string."""
    with suppress(ValueError):
        key = json.loads(written, strict=False)
        return key if isinstance(key, str) else ""
    return ""
