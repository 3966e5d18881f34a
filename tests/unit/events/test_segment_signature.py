"""Segment's signatures of webhooks."""

import hashlib
import hmac

import pytest

from loader.events.segment_signature import is_signed

# https://segment.com/docs/connections/destinations/catalog/webhooks/ has no example. This example is computed by hand.
SIGNED = b'{"type":"delete","userId":"019mr8mf4r","timestamp":"2012-12-02T00:30:08.276Z"}'
SIGNATURE = b"ec890cbd94f0c6f339496c0a426896ffb0bada93"


def signature(text: bytes) -> bytes:
    """Return Segment's signature of a text."""
    return hmac.new(b"shhh", text, hashlib.sha1).hexdigest().encode()


def test_a_body_with_its_signature_is_accepted() -> None:
    """The signature of the body's bytes is accepted in upper case and in lower case."""
    assert is_signed(SIGNED, SIGNATURE, "shhh")
    assert is_signed(SIGNED, SIGNATURE.upper(), "shhh")


@pytest.mark.parametrize(
    "body",
    [
        SIGNED.replace(b":", b" : ").replace(b"00 : 30 : 08", b"00:30:08"),
        SIGNED.replace(b"delete", b"\\u0064elete"),
        b"\n" + SIGNED + b"\n",
        b"[" + SIGNED + b',{"type":"track"}]',
        b"[ " + SIGNED.replace(b",", b", ") + b' , {"type":"track"}]',
    ],
)
def test_the_signature_is_that_of_the_body_as_javascript_writes_it(body: bytes) -> None:
    """The body may have been rewritten on its way. The signature of a batch is that of its first event."""
    assert is_signed(body, SIGNATURE, "shhh")


def test_numbers_are_signed_as_javascript_writes_them() -> None:
    """A whole number has no fraction."""
    assert is_signed(b'{"a":1.0,"b":[2.50,1e3],"c":1e21}', signature(b'{"a":1,"b":[2.5,1000],"c":1e21}'), "shhh")


@pytest.mark.parametrize(
    ("body", "given"),
    [
        (SIGNED, b""),
        (SIGNED, SIGNATURE[:-1]),
        (SIGNED, b"\xff"),
        (SIGNED.replace(b"4r", b"5r"), SIGNATURE),
        (b'[{"type":"track"},' + SIGNED + b"]", SIGNATURE),
        (b"[]", SIGNATURE),
        (b"", SIGNATURE),
        (b"{", SIGNATURE),
        (b"[" * 100_000, SIGNATURE),
    ],
)
def test_a_body_with_a_wrong_signature_is_refused(body: bytes, given: bytes) -> None:
    """A small difference is enough."""
    assert not is_signed(body, given, "shhh")
    assert not is_signed(SIGNED, SIGNATURE, "another secret")
