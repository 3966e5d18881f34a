"""The schema of events: types, paths, and a compiled decoder that reports every new property."""

import json
import math
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.events.shapes import TRACKED_PROPERTIES, Path, Shape, covers, event_name, type_of

TYPES = ["boolean", "bigint", "numeric", "timestamp with time zone", "text"]


def payload(properties: object, context: object = None) -> bytes:
    """Return a call with some properties."""
    return json.dumps({"event": "E", "properties": properties, "context": context}).encode()


def found(whole: bytes, shape: Shape | None = None) -> list[tuple[Path, str]]:
    """Return the new properties of a call, for a given shape or an empty shape."""
    return list((shape or Shape()).unknown_fields(whole))


def takes(shape: Shape, whole: bytes) -> bool:
    """Return whether the compiled decoder finds the call known."""
    try:
        shape.decode(whole)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def compile_now(shape: Shape) -> None:
    """Count enough misses for a decoder to be compiled."""
    for _ in range(1000):
        shape.missed()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("true", "boolean"),
        ("false", "boolean"),
        ("0", "bigint"),
        ("-0", "bigint"),
        ("12.0", "bigint"),
        ("1e2", "bigint"),
        ("1200e-2", "bigint"),
        ("9223372036854775807", "bigint"),
        ("-9223372036854775808", "bigint"),
        ("9223372036854775807.0", "bigint"),
        ("9223372036854775808", "numeric"),
        ("-9223372036854775809", "numeric"),
        ("9223372036854775807.5", "numeric"),
        ("12.5", "numeric"),
        ("12.00000000000000000000000000000000000001", "numeric"),
        ("1e400", "numeric"),
        ("1e-400", "numeric"),
        ("-1e131000", "numeric"),
        ("1e99999999999999999999", "numeric"),
        (str(2**70), "numeric"),
        ("9" * 400, "numeric"),
        ("9" * 5000, "numeric"),
        ('"x"', "text"),
        ('""', "text"),
        ('"12"', "text"),
        ('"true"', "text"),
        ("[]", "text"),
        ('[{"a":1}]', "text"),
        ('"2019-07-08T18:33:25.000Z"', "timestamp with time zone"),
        ('"2019-07-08\\u005418:33:25Z"', "timestamp with time zone"),
        ('"2017-05-15 23:59:47 +00:00"', "text"),
        ("null", None),
        ("{}", None),
        ('{"x":null,"y":{}}', None),
    ],
)
def test_a_value_has_the_narrowest_type_that_holds_it(value: str, kind: str | None) -> None:
    """Numbers count by their exact value, not by their spelling. Strings are text or times, and null has no type."""
    whole = b'{"properties":{"a":' + value.encode() + b"}}"
    assert found(whole) == ([] if kind is None else [(("properties", "a"), kind)])


@pytest.mark.parametrize(
    "value",
    [
        "2019-07-08T18:33:25.000Z",
        "2019-07-08T18:33:25+00:00",
        "2019-07-08T18:33:25",
        "2019-07-08T18:33",
        "2019-07-08T18:33Z",
        "2019-07-08T18:33:25.123456789-0330",
        "2019-07-08T18:33:25+14",
        "2019-07-08T18:33:25+15:59",
        "2020-02-29T00:00:00Z",
        "2000-02-29T00:00:00Z",
        "0001-01-01T00:00:00+15:59",
        "9999-12-31T23:59:59.999999999-15:59",
        "0004-02-29T23:59:59Z",
    ],
)
def test_a_text_in_iso_8601_with_a_t_is_a_time(value: str) -> None:
    """A time is ISO 8601 with a T. The offset is optional."""
    assert type_of(value) == "timestamp with time zone"


@pytest.mark.parametrize(
    "value",
    [
        "2019-07-08",
        "2019-07-08 18:33:25Z",
        "2019-07-08t18:33:25Z",
        "2019-07-08T18:33:25z",
        "2019-07-08T18",
        "2019-07-08T18:33:25 Z",
        "2019-07-08T24:00:00Z",
        "2019-07-08T18:60:25Z",
        "2019-07-08T18:33:60Z",
        "2019-07-08T18:33:25.Z",
        "2019-07-08T18:33:25.1234567890123Z",
        "2019-07-08T18:33:25+16:00",
        "2019-07-08T18:33:25+01:60",
        "2019-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2019-02-30T00:00:00Z",
        "2019-04-31T00:00:00Z",
        "2019-13-01T00:00:00Z",
        "2019-00-01T00:00:00Z",
        "2019-01-00T00:00:00Z",
        "2019-01-32T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "12019-07-08T18:33:25Z",
        "-2019-07-08T18:33:25Z",
        "٢٠١٩-07-08T18:33:25Z",
        "2019-07-08T18:33:25Z\n",
        " 2019-07-08T18:33:25Z",
        "20190708T183325Z",
        "2019-W28-1T18:33:25Z",
    ],
)
def test_a_string_that_is_almost_a_time_is_text(value: str) -> None:
    """Invalid days, other formats, and text before or after the time make the value text."""
    assert type_of(value) == "text"


@given(
    st.datetimes(timezones=st.builds(timezone, st.integers(-959, 959).map(lambda minutes: timedelta(minutes=minutes))))
)
def test_every_time_that_python_writes_is_a_time(moment: datetime) -> None:
    """Every time that Python writes in ISO 8601 is a time, and so are the days around it."""
    assert type_of(moment.isoformat()) == "timestamp with time zone"


@given(st.integers(1, 9999), st.integers(0, 13), st.integers(0, 32))
def test_exactly_the_days_of_the_calendar_are_accepted(year: int, month: int, day: int) -> None:
    """A day is accepted if and only if the calendar has it."""
    text = f"{year:04}-{month:02}-{day:02}T00:00:00"
    exists = False
    with suppress(ValueError):
        exists = bool(datetime.fromisoformat(text))
    assert (type_of(text) == "timestamp with time zone") is exists


def test_text_covers_every_type_and_numeric_covers_integers() -> None:
    """Text holds every type, and numeric holds integers. No other type holds another type."""
    pairs = {(have, kind) for have in TYPES for kind in TYPES if covers({have}, kind)}
    assert pairs == {(kind, kind) for kind in TYPES} | {("text", kind) for kind in TYPES} | {("numeric", "bigint")}


def test_paths_are_found_in_the_order_of_the_keys() -> None:
    """Objects are followed in the order of keys. Properties come before context, whose paths begin with `context`."""
    whole = payload(
        {"b": {"y": 1, "x": {"z": True}}, "a": [{"c": 1}], "n": None}, {"ip": "::1", "traits": {"email": "e"}}
    )
    assert found(whole) == [
        (("properties", "b", "y"), "bigint"),
        (("properties", "b", "x", "z"), "boolean"),
        (("properties", "a"), "text"),
        (("context", "ip"), "text"),
        (("context", "traits", "email"), "text"),
    ]


@pytest.mark.parametrize("whole", [b"{}", b'{"properties":null}', b'{"context":null}', b'{"context":{}}', b'{"a":1}'])
def test_a_call_without_properties_and_context_has_no_paths(whole: bytes) -> None:
    """Fields outside properties and context have no paths."""
    assert found(whole) == []


@pytest.mark.parametrize(
    ("whole", "kind"),
    [(b'{"context":"x"}', "text"), (b'{"context":[{"a":1}]}', "text"), (b'{"context":7}', "bigint")],
)
def test_a14_a_context_that_is_no_object_is_a_value(whole: bytes, kind: str) -> None:
    """The path of such a context is `context`. The decoder accepts a known path and still follows objects."""
    shape = Shape()
    assert found(whole, shape) == [(("context",), kind)]
    shape.learn(("context",), [kind])
    compile_now(shape)
    assert takes(shape, whole)
    assert found(whole, shape) == []
    assert found(b'{"context":{"ip":"::1"}}', shape) == [(("context", "ip"), "text")]


def test_the_name_of_an_event_is_not_normalized() -> None:
    """The name is the event's name, not the table's."""
    assert event_name(b'{"event":"Email  Op\\u0065ned","properties":{"event":"x"}}') == "Email  Opened"


def test_the_decoder_accepts_only_events_with_known_properties() -> None:
    """After compilation, any subset of the known properties passes, with nulls, empty objects and any order."""
    shape = Shape()
    first = payload(
        {"id": 1, "price": 1.5, "at": "2019-07-08T18:33:25Z", "s": "x", "o": {}, "n": None, "d": {"e": True}}
    )
    for path, kind in shape.unknown_fields(first):
        shape.learn(path, [kind])
    compile_now(shape)
    for known in (
        {},
        {"id": None},
        {"price": 3, "id": 2**63 - 1},
        {"s": 5, "at": "2020-02-29T00:00:00"},
        {"s": ["y"], "o": {}, "n": None, "d": {}},
        {"d": {"e": False}, "id": -1},
    ):
        assert takes(shape, payload(known))
    for unknown in (
        {"id": "x"},
        {"id": 1.5},
        {"at": "x"},
        {"o": {"a": 1}},
        {"n": 1},
        {"d": 1},
        {"d": {"f": 1}},
        {"new": 1},
    ):
        assert not takes(shape, payload(unknown))
        assert found(payload(unknown), shape)


def test_recorded_properties_are_compiled_into_the_decoder() -> None:
    """A process that starts with the recorded properties does not discover them again."""
    shape = Shape([(["properties", "a"], ["bigint"]), (["context", "b", "c"], ["boolean", "text"])], untracked=True)
    compile_now(shape)
    assert takes(shape, payload({"a": 1}, {"b": {"c": "x"}}))
    assert (shape.tracked, shape.untracked) == (2, True)
    assert shape.knows(("properties", "a"))
    assert not shape.knows(("properties", "b"))
    assert not shape.knows(("properties",))


KEYS = st.sampled_from(["a", "b", "é", '"', "\\", "", "a\x01"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.integers(),
    st.sampled_from([2**63, -(2**63), 2**63 - 1, 1.5, 12.0, "2019-07-08T18:33:25Z", "2019-07-08", "x", [], [1], {}]),
    st.floats(allow_nan=False, allow_infinity=False),
)
OBJECTS = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=6), max_size=4
)
EVENTS = st.builds(payload, OBJECTS, OBJECTS | LEAVES)


# Events; whether the shape learns from an event; and whether a decoder is compiled after the event.
HISTORIES = st.lists(st.tuples(EVENTS, st.booleans(), st.booleans()), min_size=1, max_size=12)


def check_decoder(history: list[tuple[bytes, bool, bool]]) -> None:
    """Check that a call that the decoder accepts has no new property, after each event of a history."""
    shape = Shape()
    for whole, learn, compiled in history:
        if takes(shape, whole):
            assert found(whole, shape) == []
        for path, kind in list(shape.unknown_fields(whole)):
            if learn:
                shape.learn(path, [kind])
        if learn:
            assert found(whole, shape) == []
        if compiled:
            compile_now(shape)


@settings(max_examples=25)
@given(HISTORIES)
def test_the_decoder_accepts_no_event_with_a_new_property(history: list[tuple[bytes, bool, bool]]) -> None:
    """After any known events, a call that the decoder accepts has no new property."""
    check_decoder(history)


@pytest.mark.heavy
@settings(max_examples=2000)
@given(HISTORIES)
def test_the_decoder_accepts_no_new_property_in_many_histories(history: list[tuple[bytes, bool, bool]]) -> None:
    """The same holds for eighty times as many histories."""
    check_decoder(history)


def flattened(value: Any, path: Path = ()) -> dict[Path, str]:
    """Return the paths below an object with their types, by simple recursion."""
    paths: dict[Path, str] = {}
    for key, each in value.items() if isinstance(value, dict) else ():
        if isinstance(each, dict):
            paths |= flattened(each, (*path, key))
        elif isinstance(each, bool):
            paths[(*path, key)] = "boolean"
        elif isinstance(each, Decimal):
            inside = -(2**63) <= each < 2**63
            paths[(*path, key)] = "bigint" if inside and math.floor(each) == each else "numeric"
        elif isinstance(each, str) and each.startswith("2019") and "T" in each:
            paths[(*path, key)] = "timestamp with time zone"
        elif each is not None:
            paths[(*path, key)] = "text"
    return paths


@given(EVENTS)
def test_paths_equal_the_result_of_a_simple_recursive_function(whole: bytes) -> None:
    """A recursive function over exactly parsed JSON finds the same paths."""
    call = json.loads(whole, parse_int=Decimal, parse_float=Decimal)
    expected = flattened({root: call[root] for root in ("properties", "context")})
    assert dict(found(whole)) == expected


def test_a_repeated_key_counts_once_as_in_the_database() -> None:
    """The last of two equal keys is the value. The decoder does not accept an event because of the first value."""
    shape = Shape([(["properties", "a"], ["bigint"])])
    compile_now(shape)
    whole = b'{"properties":{"a":1,"a":"x"}}'
    assert not takes(shape, whole)
    assert found(whole, shape) == [(("properties", "a"), "text")]


def test_thousands_of_new_properties_compile_only_a_few_decoders() -> None:
    """Decoders are compiled only if they save time: two thousand shapes cost a handful of decoders."""
    shape = Shape()
    decoders = set()
    for i in range(2000):
        whole = payload({f"key{i}": 1})
        if not takes(shape, whole):
            for path, kind in list(shape.unknown_fields(whole)):
                shape.learn(path, [kind])
            shape.missed()
        decoders.add(shape.decode)
    assert len(decoders) < 15


def test_keys_that_are_always_null_use_limited_memory() -> None:
    """Keys that are always null use limited memory: at most twice as many entries as there are tracked properties."""
    shape = Shape()
    for start in range(0, 5 * TRACKED_PROPERTIES, 1000):
        assert found(payload({f"key{i}": None for i in range(start, start + 1000)}), shape) == []
    assert shape.remembered <= 2 * TRACKED_PROPERTIES


@pytest.mark.parametrize("width", [499, 501, 3000])
def test_no_decoder_is_compiled_for_very_wide_objects(width: int) -> None:
    """A decoder for such an object would not be faster. No decoder accepts a property that it does not check."""
    shape = Shape((["properties", f"key{i}"], ["bigint"]) for i in range(width))
    for _ in range(width + 100):
        shape.missed()
    assert takes(shape, payload({"key1": 1})) is (width <= 500)
    assert not takes(shape, payload({"key1": "x"}))
    assert not takes(shape, payload({"other": 1}))


def test_deep_objects_are_followed() -> None:
    """Five hundred nested objects are one path, with and without a compiled decoder."""
    deep = b'{"properties":' + b'{"a":' * 500 + b"1" + b"}" * 501
    [(path, kind)] = found(deep)
    assert (path, kind) == (("properties", *["a"] * 500), "bigint")
    shape = Shape([(path, [kind])])
    compile_now(shape)
    assert found(deep, shape) == []
    assert takes(shape, payload({}))
