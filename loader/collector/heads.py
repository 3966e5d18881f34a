"""Heads of requests that came before on their connection: what was read once need not be read again.

A client that stays sends head after head of the same bytes, in which nothing but the length of the body differs. What a
parser made of the first of them is true of the next: so a head is recognised by its bytes, up to that length and behind
it. This module parses nothing; it refuses what it is not sure of, and the parser reads it. Nothing here does I/O.
"""

import msgspec

_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"

# Connections are many; a longer head is not worth the memory.
_BYTES = 4096

# More digits than a short body's length has.
_DIGITS = 8


class Head(msgspec.Struct, frozen=True, gc=False):
    """A head that may come again with another length.

    Attributes:
        before: Its bytes up to the length of the body.
        after: Its bytes behind that.
    """

    before: bytes
    after: bytes

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body of a request that has this head.

        Args:
            data: What came on the connection, from the beginning of a request.

        Returns:
            The body; None when the head is another, or the data is not exactly one request.
        """
        before = len(self.before)
        if not data.startswith(self.before):
            return None
        end = data.find(b"\r", before, before + _DIGITS)
        if not data.startswith(self.after, end) or not (digits := data[before:end]).isdigit():
            return None
        body = data[end + len(self.after) :]
        return body if len(body) == int(digits) else None


def head_of(data: bytes, body: bytes) -> Head | None:
    """Return the head of a request that a parser has read.

    Args:
        data: What came on the connection: in the parser's opinion exactly one request, with the length of its body in
            one header.
        body: The body the parser found.

    Returns:
        The head; None when it is long, or there is the least doubt about where its parts are.
    """
    end = data.find(_END) + len(_END)
    head = data[:end]
    at = head.lower().find(_LENGTH) + len(_LENGTH)
    is_one = data[end:] == body and at >= len(_LENGTH) and _LENGTH not in head[at:].lower()
    # Some parsers end a line at any newline.
    if not is_one or end > _BYTES or head.count(b"\n") != head.count(b"\r\n"):
        return None
    at += head[at] == ord(" ")
    known = Head(head[:at], head[head.find(b"\r", at) :])
    return known if known.body_of(data) == body else None
