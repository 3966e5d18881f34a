"""Filters and shapes: which calls a destination gets, and in which form."""

import hashlib
import json
from typing import Any

import pytest

from loader.destinations.filters import (
    Condition,
    Filters,
    read_condition,
    read_filters,
    read_renaming,
    read_sample,
    stored_filters,
)
from loader.destinations.shaping import Shaper
from loader.errors import UsageError
from loader.raw.delivery_windows import LandedCall


def landed(
    timestamp: str | None = None, message_id: str = "m", source: str = "iterable", **fields: object
) -> LandedCall:
    """Return a landed call."""
    call = {"type": "track", "event": "Email Opened", "userId": "u1"} | fields
    payload = json.dumps({name: value for name, value in call.items() if value is not None}).encode()
    return LandedCall(1, "1", source, message_id, "2026-03-04T10:00:00.000Z", timestamp, payload)


def shaped(filters: Filters | None = None, timestamp: str | None = None, **fields: object) -> dict[str, Any] | None:
    """Return the call that a destination `cdp` of the kind `segment` gets; None if it gets none."""
    call = Shaper(filters or Filters(), "cdp", "segment").shape(landed(timestamp, **fields))
    return None if call is None else json.loads(call.body)


def passes(filters: Filters, **fields: object) -> bool:
    """Return whether the filters admit a call."""
    return shaped(filters, **fields) is not None


@pytest.mark.parametrize(
    ("events", "exclude", "name", "admitted"),
    [
        ((), (), "Email Opened", True),
        (("Email *",), (), "Email Opened", True),
        (("Email *",), (), "SMS Sent", False),
        (("email *",), (), "Email Opened", False),
        (("Email *", "SMS *"), (), "SMS Sent", True),
        (("Email *",), ("Email Send Skip",), "Email Send Skip", False),
        ((), ("*Skip",), "Email Send Skip", False),
        (("E?",), (), "E1", True),
        (("[ab]*",), (), "b.x", True),
        (("a.c",), (), "abc", False),
    ],
)
def test_events_are_chosen_by_patterns_on_their_names(
    events: tuple[str, ...], exclude: tuple[str, ...], name: str, *, admitted: bool
) -> None:
    """The name counts as it was sent. A later pattern excludes what an earlier one admits."""
    assert passes(Filters(events=events, exclude=exclude), event=name) is admitted


def test_patterns_concern_track_calls_alone() -> None:
    """Other calls are chosen by their type."""
    assert passes(Filters(events=("Email *",)), type="identify", event=None)
    assert not passes(Filters(events=("Email *",), types=("track",)), type="identify", event=None)


def test_sources_are_chosen_by_their_schema() -> None:
    """A call of another source stays."""
    shaper = Shaper(Filters(sources=("shop",)), "cdp", "segment")
    assert shaper.shape(landed()) is None
    assert shaper.shape(landed(source="shop"))


@pytest.mark.parametrize(
    ("condition", "admitted"),
    [
        ("properties.plan = pro", True),
        ("properties.plan = free", False),
        ("properties.plan != free", True),
        ("properties.plan in free, pro", True),
        ("properties.plan in free,team", False),
        ("properties.total > 9.5", True),
        ("properties.total < 10", False),
        ("properties.total = 10", True),
        ("properties.total = 10.0", True),
        ('properties.total = "10"', False),
        ("properties.total > a", False),
        ("properties.plan > abc", True),
        ("properties.active = true", True),
        ("properties.active = 1", False),
        ("properties.nothing exists", False),
        ("properties.null exists", False),
        ("properties.plan exists", True),
        ("properties.nothing != x", True),
        ("properties.nothing = x", False),
        ("properties.plan.deeper exists", False),
        ("userId = u1", True),
    ],
)
def test_conditions_look_at_values_by_their_paths(condition: str, *, admitted: bool) -> None:
    """A number equals a number, whatever its form, and never a text."""
    properties = {"plan": "pro", "total": 10, "active": True, "null": None}
    assert passes(Filters(where=(read_condition(condition),)), properties=properties) is admitted


@pytest.mark.parametrize("value", [b"1" * 5000, b"[" * 50_000 + b"]" * 50_000])
def test_a_value_that_cannot_be_decoded_exists_and_equals_nothing(value: bytes) -> None:
    """They are there, and equal nothing."""
    payload = b'{"type": "track", "event": "E", "userId": "u", "properties": {"x": ' + value + b"}}"
    call = LandedCall(1, "1", "iterable", "m", "2026-03-04T10:00:00.000Z", None, payload)
    for condition, is_admitted in (("x exists", True), ("x = 1", False), ("x != 1", True), ("x > 1", False)):
        shaper = Shaper(Filters(where=(read_condition(f"properties.{condition}"),)), "cdp", "segment")
        assert (shaper.shape(call) is not None) is is_admitted


def test_every_condition_must_hold() -> None:
    """Conditions are joined by `and`."""
    both = (Condition("properties.a", "=", 1), Condition("properties.b", "=", 2))
    assert passes(Filters(where=both), properties={"a": 1, "b": 2})
    assert not passes(Filters(where=both), properties={"a": 1, "b": 3})


@pytest.mark.parametrize("text", ["", "plan", "a = ", "a exists b", "= pro"])
def test_a_text_that_is_no_condition_is_refused(text: str) -> None:
    """The error shows the form."""
    with pytest.raises(UsageError, match="is not a condition"):
        read_condition(text)


@pytest.mark.parametrize(
    ("integrations", "admitted"),
    [
        (None, True),
        ({}, True),
        ({"All": True}, True),
        ({"All": False}, False),
        ({"All": False, "cdp": True}, True),
        ({"All": False, "Segment": {"option": 1}}, True),
        ({"All": False, "segment": False}, False),
        ({"CDP": False}, False),
        ({"Other": False}, True),
        ({"All": False, "Other": True}, False),
    ],
)
def test_the_integrations_of_a_call_choose_its_destinations(integrations: object, *, admitted: bool) -> None:
    """As with Segment, by the name or the kind of the destination."""
    assert passes(Filters(), integrations=integrations) is admitted


def test_a_sample_has_the_same_users_each_time() -> None:
    """A tenth of the users, with all their calls."""
    half = Filters(sample=0.5)
    admitted = {user for user in map(str, range(400)) if passes(half, userId=user)}
    assert 150 < len(admitted) < 250
    assert admitted == {user for user in map(str, range(400)) if passes(half, userId=user, event="Other")}
    assert passes(Filters(sample=1.0), userId="x")


def test_the_shape_drops_keeps_and_hashes_values() -> None:
    """A list on the way stands for each of its elements."""
    properties = {"email": " A@Example.COM ", "items": [{"sku": 1, "cost": 2}, {"sku": 3, "cost": 4}], "tags": [1, 2]}
    filters = Filters(
        drop=("properties.items.cost", "properties.tags", "context.ip"), hash=("properties.email", "userId")
    )
    call = shaped(filters, properties=properties, context={"ip": "192.0.2.1", "page": {}})
    assert call is not None
    assert call["properties"] == {
        "email": hashlib.sha256(b"a@example.com").hexdigest(),
        "items": [{"sku": 1}, {"sku": 3}],
    }
    assert call["context"] == {"page": {}}
    assert call["userId"] == hashlib.sha256(b"u1").hexdigest()


def test_the_option_only_keeps_listed_values_of_properties_traits_and_context() -> None:
    """The ids and the name of a call always go."""
    filters = Filters(only=("properties.a", "properties.list.x", "context.page.url"))
    call = shaped(
        filters,
        properties={"a": {"b": 1}, "c": 2, "list": [{"x": 1, "y": 2}]},
        context={"page": {"url": "u", "title": "t"}, "ip": "192.0.2.1"},
        traits={"name": "n"},
    )
    assert call == {
        "type": "track",
        "event": "Email Opened",
        "userId": "u1",
        "messageId": "m",
        "properties": {"a": {"b": 1}, "list": [{"x": 1}]},
        "context": {"page": {"url": "u"}},
        "traits": {},
    }


def test_events_get_new_names_after_the_filters() -> None:
    """The filters look at the name as sent."""
    filters = Filters(events=("Email Opened",), rename={"Email Opened": "Mail Opened"})
    call = shaped(filters)
    assert call is not None
    assert call["event"] == "Mail Opened"


def test_iterables_own_body_is_sent_only_on_request() -> None:
    """The call without it is kept for receivers to which the whole call is too large."""
    assert "native" not in (shaped(native={"x": 1}) or {})
    call = Shaper(Filters(native=True), "cdp", "segment").shape(landed(native={"x": 1}))
    assert call is not None
    assert json.loads(call.body)["native"] == {"x": 1}
    assert call.slim is not None
    assert "native" not in json.loads(call.slim)


@pytest.mark.parametrize("original", ["2026-03-04T10:00:00.000Z", "2026-03-04T09:00:00+01:00", 7])
def test_a_call_has_the_time_of_tracks_and_its_original_time(original: object) -> None:
    """The receiver sets its own time of receipt, and corrects by the time of this sending."""
    call = shaped(timestamp="2026-03-04T10:55:00.000Z", originalTimestamp=original, receivedAt="y", sentAt="z")
    assert call is not None
    assert (call["timestamp"], call["originalTimestamp"]) == ("2026-03-04T10:55:00.000Z", original)
    assert not call.keys() & {"receivedAt", "sentAt"}


def test_a_line_of_a_log_has_every_time() -> None:
    """As in Segment's raw logs, so that a reader need not correct the time again."""
    for given, original in (({"timestamp": "t"}, "t"), ({"timestamp": "t", "originalTimestamp": "o"}, "o"), ({}, None)):
        payload = {"type": "track", "event": "E", "sentAt": "s", "receivedAt": "r", "writeKey": "w"} | given
        received = "2026-03-04T11:00:00.000Z"
        corrected = "2026-03-04T10:55:00.000Z"
        call = Shaper(Filters(), "lake", "files").shape(
            LandedCall(1, "1", "iterable", "m", received, corrected, json.dumps(payload).encode())
        )
        assert call is not None
        line = json.loads(call.body)
        assert line.get("originalTimestamp") == original
        assert (line["timestamp"], line["sentAt"], line["receivedAt"]) == (corrected, "s", received)
        assert "writeKey" not in line


def test_values_keep_their_bytes() -> None:
    """Numbers that no decoder holds reach the receiver as they came."""
    payload = b'{"type": "track", "event": "E", "userId": "u", "properties": {"a": 1.10, "b": 123456789012345678901}}'
    call = Shaper(Filters(), "cdp", "segment", "mark").shape(
        LandedCall(1, "1", "iterable", "m", "2026-03-04T10:00:00.000Z", None, payload)
    )
    assert call is not None
    assert b'{"a": 1.10, "b": 123456789012345678901}' in call.body


def test_a_call_gets_the_mark_of_this_warehouse_beside_other_marks() -> None:
    """So that a ring of warehouses ends."""
    shaper = Shaper(Filters(), "cdp", "segment", "here")
    for context, via in (({}, ["here"]), ({"via": ["there"]}, ["there", "here"]), ({"via": "x"}, ["here"])):
        call = shaper.shape(landed(context=context))
        assert call is not None
        assert json.loads(call.body)["context"]["via"] == via


def test_stored_filters_are_read_back_unchanged() -> None:
    """The stored form has only what differs from the default."""
    filters = Filters(
        events=("a*",), where=(Condition("x", "in", [1, "b"]),), rename={"a": "b"}, sample=0.25, native=True
    )
    assert read_filters(json.loads(json.dumps(stored_filters(filters)))) == filters
    assert stored_filters(Filters()) == {}


def test_shares_and_names_are_read_from_options() -> None:
    """And refused with the right form."""
    assert [read_sample("10%"), read_sample("0.5")] == [0.1, 0.5]
    assert read_renaming(("A=B", "C=D=E")) == {"A": "B", "C": "D=E"}
    for text in ("0", "x", "200%", "-1"):
        with pytest.raises(UsageError, match="is not a share"):
            read_sample(text)
    with pytest.raises(UsageError, match="OLD=NEW"):
        read_renaming(("A",))
