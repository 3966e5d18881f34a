"""A message becomes an event or a refusal in one way, whatever its format."""

import pytest

from loader.events.json_text import decode, parse_text, read_elements
from loader.events.model import Event, Reason, Refused, RefusedError


def make_event(text: bytes, offset: int) -> Event:
    """Make an event of a text, or refuse it."""
    if b"bad" in text:
        raise RefusedError(Reason.BAD_REQUEST, "the format refuses this text")
    return Event(text, offset, "id", None, None)


def test_a_text_becomes_an_event() -> None:
    """The function of the format gets the text without surrounding white space, and the offset."""
    assert parse_text(b' {"a":1}\r', 7, make_event) == [make_event(b'{"a":1}', 7)]


def test_white_space_becomes_nothing() -> None:
    """A blank line is neither an event nor a mistake."""
    assert parse_text(b" \t", 7, make_event) == []


def test_a_refused_text_keeps_its_bytes() -> None:
    """With the white space that the function of the format did not get."""
    refused = Refused(b' "bad" ', 7, Reason.BAD_REQUEST, "the format refuses this text")
    assert parse_text(b' "bad" ', 7, make_event) == [refused]


def test_bytes_that_are_not_utf8_are_refused() -> None:
    """The refusal has the bytes, and the position of the first wrong byte."""
    [refused] = parse_text(b'"bad\xff"', 7, make_event)
    assert isinstance(refused, Refused)
    assert (refused.payload, refused.reason) == (b'"bad\xff"', Reason.INVALID_UTF8)
    assert "byte 4" in refused.detail


def test_a_repaired_text_gives_an_event_and_its_original() -> None:
    """The event has the replacement, and the refusal the bytes of the sender."""
    event, original = parse_text(rb'"\u0000"', 7, make_event)
    assert event == make_event(rb'"\ufffd"', 7)
    assert isinstance(original, Refused)
    assert (original.payload, original.repaired) == (rb'"\u0000"', True)


def test_a_repaired_text_that_is_refused_gives_one_refusal() -> None:
    """The refusal is not marked as repaired, because nothing lands."""
    [refused] = parse_text(rb'"bad\u0000"', 7, make_event)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.repaired, refused.payload) == (Reason.BAD_REQUEST, False, rb'"bad\u0000"')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[1", Reason.INVALID_JSON),
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b"", Reason.INVALID_JSON),
    ],
)
def test_a_text_that_is_no_array_is_refused(text: bytes, reason: Reason) -> None:
    """With the reason that a whole message would have."""
    with pytest.raises(RefusedError) as error:
        read_elements(text)
    assert error.value.reason == reason
    assert error.value.detail


def test_decode_returns_the_result_of_the_decoder() -> None:
    """Only the decoder's own errors become refusals."""
    assert decode(len, b"{}") == 2
    with pytest.raises(ZeroDivisionError):
        decode(lambda _: 1 // 0, b"{}")
