"""Signs webhooks as Segment does, and checks Segment's signatures.

https://segment.com/docs/connections/destinations/catalog/actions-webhook/
"""

import hashlib
import hmac
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from loader.events.json_text import read_elements, strip_body
from loader.events.model import RefusedError

# The smallest number that JavaScript writes with an exponent.
_EXPONENT_FROM = 1e21


def sign(body: bytes, secret: str) -> str:
    """Return the value of `X-Signature`: the HMAC-SHA1 of a body, in hexadecimal digits."""
    return hmac.new(secret.encode(), body, hashlib.sha1).hexdigest()


def is_signed(body: bytes, signature: bytes, secret: str) -> bool:
    """Return whether Segment has signed a webhook's body.

    Segment signs the body as JavaScript writes it. When the body is a batch, Segment signs only the first event.
    """
    given = signature.strip().lower()
    return any(hmac.compare_digest(sign(text, secret).encode(), given) for text in _signed_texts(body))


def _number(text: str) -> float:
    """Convert a number to a value that is encoded as JavaScript writes it: without a fraction of zero."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < _EXPONENT_FROM else value


_decode = msgspec.json.Decoder(float_hook=_number).decode


def _signed_texts(body: bytes) -> Iterator[bytes]:
    """Yield the texts that Segment may have signed.

    Each text is also yielded as JavaScript writes it. An unreadable text is yielded only as received, so an unreadable
    event does not invalidate the signature of its batch.
    """
    yield body
    texts = [body]
    text = strip_body(body)
    if text.startswith(b"["):
        with suppress(RefusedError):
            texts += read_elements(text)[:1]
            yield from texts[1:]
    for each in texts:
        with suppress(msgspec.MsgspecError, RecursionError):
            yield msgspec.json.encode(_decode(each))
