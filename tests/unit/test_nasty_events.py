"""The nasty events have what they promise, so that a test on them tests something."""

import json
from collections import Counter, defaultdict
from functools import cache

from loader.events.model import Event
from loader.events.naming import table_name
from loader.events.segment import parse_lines
from tests.support.marts.expected import expected_marts
from tests.support.marts.served import serve
from tests.support.marts.values import Row
from tests.support.nasty_events import NastyEvents, generate_nasty_events
from tests.support.served_tables import COLLECTIONS


@cache
def nasty() -> NastyEvents:
    """Return nasty events that tests share; no test changes them."""
    return generate_nasty_events(2_000)


@cache
def marts() -> dict[str, list[Row]]:
    """Return the expected marts of these events."""
    return expected_marts(serve(nasty().iterable))


def test_the_same_seed_gives_the_same_events() -> None:
    """Another seed gives others, and the size is the wanted one."""
    # As text, because a value may be NaN, which equals nothing.
    assert repr(generate_nasty_events(100, seed=1)) == repr(generate_nasty_events(100, seed=1))
    assert repr(generate_nasty_events(100, seed=1)) != repr(generate_nasty_events(100, seed=2))
    assert len(nasty().iterable) == 2_000


def test_every_call_is_accepted() -> None:
    """The events are nasty, and no call is wrong."""
    lines = "".join(f"{json.dumps(call)}\n" for call in [*nasty().iterable, *nasty().app])
    assert all(isinstance(message, Event) for message in parse_lines(lines.encode(), 0))


def test_every_collection_occurs() -> None:
    """Each is that of a call's name."""
    assert {table_name(call["event"]) for call in nasty().iterable} == set(COLLECTIONS)


def test_some_ids_occur_twice_in_one_or_two_collections() -> None:
    """Some of these calls differ in their values."""
    collections = defaultdict(list)
    for call in nasty().iterable:
        collections[call["messageId"]].append(call)
    twice = [calls for calls in collections.values() if len(calls) == 2]
    assert any(calls[0] == calls[1] for calls in twice)
    assert any(calls[0]["event"] == calls[1]["event"] and calls[0] != calls[1] for calls in twice)
    assert any(calls[0]["event"] != calls[1]["event"] for calls in twice)


def test_events_lack_their_send_or_their_message_id() -> None:
    """Some find an earlier send, others find none."""
    without_id = [event for event in marts()["events"] if event["message_id"] is None and event["message_key"]]
    kinds = Counter(
        (event["type"] == "send", ":-:" in event["message_key"], event["message_key"][:2]) for event in without_id
    )
    assert kinds.keys() == {(True, False, "f:"), (False, True, "f:"), (False, False, "f:"), (False, False, "m:")}
    assert sum(not message["has_send"] for message in marts()["messages"]) > 100


def test_events_of_a_message_share_their_second_and_land_in_disorder() -> None:
    """So the order of events has ties to break."""
    seconds = Counter((event["message_key"], event["occurred_at"]) for event in marts()["events"])
    assert sum(number > 1 for (key, _), number in seconds.items() if key) > 50
    times = [call["timestamp"] for call in nasty().iterable]
    assert times != sorted(times)


def test_machines_identities_and_names_vary() -> None:
    """A person has several keys, and a campaign several names."""
    assert {event["is_machine"] for event in marts()["events"]} == {True, False}
    assert {key[:2] for message in marts()["messages"] if (key := message["user_key"])} == {"u:", "e:", "a:"}
    names = defaultdict(set)
    for event in marts()["events"]:
        names[event["campaign_id"]].add(event["campaign_name"])
    assert max(map(len, names.values())) > 3


def test_orders_are_tracked_twice() -> None:
    """Two calls with different ids have one order id."""
    ids = defaultdict(set)
    for call in nasty().app:
        ids[call["properties"]["order_id"]].add(call["messageId"])
    assert any(len(found) > 1 for order, found in ids.items() if order)
