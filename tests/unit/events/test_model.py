"""The bytes that a delivery counts for in the queue."""

from datetime import UTC, datetime

from loader.events.formats import ITERABLE_WEBHOOK, parse_message
from loader.events.model import Delivery, Event, Refused

NOW = datetime(2026, 3, 4, tzinfo=UTC)


def test_each_byte_of_a_delivery_counts_once() -> None:
    """A webhook counts with the call that was made from it, and a refusal with its own bytes."""
    body = b'{"email":"m@x","eventName":"emailOpen","dataFields":{"a":"x"}}'
    [event] = parse_message(ITERABLE_WEBHOOK, body, 0)
    [refused] = parse_message(ITERABLE_WEBHOOK, b"{", 0)
    assert isinstance(event, Event)
    assert isinstance(refused, Refused)
    assert Delivery("iterable", ITERABLE_WEBHOOK, [event, event], [refused], NOW).size == 2 * len(event.payload) + 1
    assert event.payload.count(body) == 1


def test_a_delivery_without_messages_counts_no_bytes() -> None:
    """A probe of readiness has room in a full queue."""
    assert Delivery("", "", [], [], NOW).size == 0
