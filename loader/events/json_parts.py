"""Splits JSON text into its parts without decoding them: the elements of an array, the members of an object.

A decoder refuses a whole text for one invalid value in it. These functions only find the beginning and the end of each
value, so that each value can be read or refused by itself. Their time is proportional to the length of the text, at any
depth.
"""

import json
import re

import msgspec

Fields = dict[str, msgspec.Raw]

# A whole string, or a structural character. A quote mark alone begins a string without an end.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)
_MEMBER = re.compile(rb'("(?:[^"\\]++|\\.)*+")\s*+:\s*+(.+)', re.DOTALL)
_CLOSING = {b"[": b"]", b"{": b"}"}


def split_array(text: bytes) -> list[bytes] | None:
    """Return the unchanged bytes of the elements of an array.

    Args:
        text: The array, without surrounding white space.

    Returns:
        The elements without surrounding white space; None if the text is not an array, or cannot be split.
    """
    return _split(text) if text.startswith(b"[") else None


def split_object(text: bytes) -> Fields | None:
    """Return the members of an object by name, with the unchanged bytes of their values.

    Args:
        text: The object, without surrounding white space.

    Returns:
        The members, the last one of each name; None if the text is not an object, or cannot be split.
    """
    parts = _split(text) if text.startswith(b"{") else None
    if parts is None:
        return None
    fields: Fields = {}
    for part in parts:
        member = _MEMBER.fullmatch(part)
        if member is None:
            return None
        try:
            name = json.loads(member[1], strict=False)
        except ValueError:
            return None
        fields[name] = msgspec.Raw(member[2])
    return fields


def join_object(fields: Fields) -> bytes:
    """Encode an object; all values keep their bytes."""
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:  # a name with half of a surrogate pair
        members = (b"%b:%b" % (json.dumps(name).encode(), bytes(value)) for name, value in fields.items())
        return b"{%b}" % b",".join(members)


def _split(text: bytes) -> list[bytes] | None:
    """Return the parts between the commas of an array or object; None if brackets do not match."""
    parts: list[bytes] = []
    closing: list[bytes] = []
    start = 1
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in _CLOSING:
            closing.append(_CLOSING[mark])
        elif mark in (b"]", b"}"):
            if not closing or closing.pop() != mark:
                return None
            if not closing:
                parts.append(text[start : token.start()].strip())
                break
        elif mark == b",":
            if len(closing) == 1:
                parts.append(text[start : token.start()].strip())
                start = token.end()
        elif mark == b'"':
            return None
    if closing or not parts or token.end() != len(text):
        return None
    if parts == [b""]:
        return []
    return None if b"" in parts else parts
