"""Removes write keys from calls, because the loader stores only digests of keys.

A sender may write its key into the call or the batch (`writeKey`). The key must reach neither raw.events nor
raw.quarantine, even if the call is not valid JSON.
"""

import json
import re
from contextlib import suppress

from loader.events.json_parts import join_object
from loader.events.json_text import read_fields, strip_body

_NAME = "writeKey"


def _spelled(name: str) -> bytes:
    r"""Return an expression for a name, each letter of which may also be an escape such as `\u0077`."""
    return b"".join(
        rb"(?:%b|\\u00%b)" % (letter.encode(), "".join(f"[{d}{d.upper()}]" for d in f"{ord(letter):02x}").encode())
        for letter in name
    )


# A name and a value in a text that is not valid JSON. The quotes may be missing, escaped or cut off.
_WRITTEN = re.compile(
    rb"""
    ( (?<![A-Za-z0-9_]) %b (?: \\*+["'] )?+ \s*+ [:=] \s*+ )
    (?: (\\*+["']) ((?: (?!\2) (?: [^\\] | \\. ) )*+) | (?! null ) ([^\s"'\\,;&{}\[\]]++) )
    """
    % _spelled(_NAME),
    re.VERBOSE | re.DOTALL,
)


def may_have_write_key(text: bytes) -> bool:
    """Return whether a text may contain a write key; False is certain."""
    return b"writeKey" in text or (b"\\" in text and b"\\u00" in text)


def take_write_key(text: bytes) -> tuple[str, bytes]:
    """Separate the write key from a call.

    Args:
        text: The bytes of the call.

    Returns:
        The key and the call without the key. Without a key, the first value is empty and the call is unchanged. A
        property with the name `writeKey` stays.
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
    """Return the first write key in a text that is not valid JSON; an empty text without a key."""
    found = _WRITTEN.search(text)
    if found is None:
        return ""
    return found[4].decode(errors="replace") if found[4] else read_write_key(b'"%b"' % found[3])


def blank_write_keys(text: bytes) -> bytes:
    """Remove the write keys from a text that is not valid JSON."""
    return _WRITTEN.sub(rb"\1\2", text)


def read_write_key(written: bytes) -> str:
    """Decode a write key in JSON; an empty text if the value is not a string."""
    with suppress(ValueError):
        key = json.loads(written, strict=False)
        return key if isinstance(key, str) else ""
    return ""
