"""Lines of tracking calls become events, byte for byte, or refusals with a reason."""

import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader.events.model import Event, Reason, Refused
from loader.events.naming import table_name
from loader.events.segment import parse_line, parse_lines, parse_webhook
from tests.support.factories import call, call_line

BASE = b'{"type":"track","event":"Email Opened","userId":"u1","messageId":"m1"}'
# A line before the call, because the first bytes of a file have rules of their own.
ANYWHERE = 1000


def with_value(value: bytes) -> bytes:
    """Return a valid call as a line, with a property of exactly these bytes."""
    return BASE[:-1] + b',"properties":{"x":' + value + b"}}"


def parse(data: bytes, offset: int = ANYWHERE) -> list[Event | Refused]:
    """Return the messages of lines."""
    return parse_lines(data, offset)


def accepted(line: bytes, offset: int = ANYWHERE) -> Event:
    """Return the one event of a line that is accepted unchanged."""
    (event,) = parse(line, offset)
    assert isinstance(event, Event)
    return event


def refused(line: bytes, offset: int = ANYWHERE) -> Refused:
    """Return the one refusal of a line that is refused."""
    (refusal,) = parse(line, offset)
    assert isinstance(refusal, Refused)
    return refusal


def repaired(line: bytes) -> tuple[bytes, Reason]:
    """Return the event of a repaired line, and the reason for the repair."""
    event, original = parse(line)
    assert isinstance(event, Event)
    assert isinstance(original, Refused)
    assert original.repaired
    assert (original.payload, original.offset) == (line, event.offset)
    return event.payload, original.reason


# Events


def test_an_event_is_kept_byte_for_byte() -> None:
    """A valid line lands unchanged, with its key order, spaces, escapes and spelling of numbers."""
    line = b'{"userId": "u1",  "event":"Email Opened","type":"track","messageId":"m1","properties":'
    line += b'{"z":1.50,"a":"\\u00e9\xc3\xa9"}}'
    assert accepted(line) == Event(line, ANYWHERE, "m1", "email_opened", None)


def test_offsets_count_bytes_from_the_given_offset() -> None:
    """Each event knows the offset of its line in bytes, not in characters."""
    lines = [call_line(userId="é" * 3), call_line(), call_line(userId="🎉")]
    data = b"\n".join(lines)
    assert [message.offset for message in parse(data, 7)] == [7, 8 + len(lines[0]), 9 + len(lines[0]) + len(lines[1])]


@pytest.mark.parametrize(
    ("integrations", "warehouse_id", "is_served"),
    [
        ({}, "", True),
        ({"All": False}, "", True),
        ({"All": False, "Warehouses": {"all": True}}, "", True),
        ({"Warehouses": {"all": False}}, "", False),
        ({"Warehouses": {"all": False}}, "here", False),
        ({"Warehouses": {"warehouseIds": ["elsewhere"]}}, "", True),
        ({"Warehouses": {"warehouseIds": ["elsewhere"]}}, "here", False),
        ({"Warehouses": {"warehouseIds": ["elsewhere", "here"]}}, "here", True),
        ({"Warehouses": {"all": False, "warehouseIds": ["here"]}}, "here", True),
        ({"Warehouses": {"warehouseIds": []}}, "here", False),
        ({"Warehouses": {"warehouseIds": "here"}}, "here", True),
        ({"Warehouses": {"all": 0}}, "", True),
        ({"Warehouses": False}, "here", True),
        ({"Warehouses": None}, "here", True),
        (None, "here", True),
        (False, "here", True),
        ([{"Warehouses": {"all": False}}], "", True),
    ],
)
def test_vector_61_integrations_keep_a_call_out_of_warehouses(
    integrations: object, warehouse_id: str, *, is_served: bool
) -> None:
    """An excluded call lands unchanged and has no collection, in each parser."""
    sent = json.dumps(call() | {"integrations": integrations}).encode()
    [by_line] = parse_line(sent, 0, warehouse_id)
    [among_lines] = parse_lines(sent, 0, warehouse_id)
    [by_webhook] = parse_webhook(sent, 0, warehouse_id)
    assert by_line == among_lines == by_webhook
    assert by_line.payload == sent
    assert by_line.collection == ("email_opened" if is_served else None)


def test_vector_61_a_name_may_be_written_with_escapes() -> None:
    """JSON has several spellings of a name."""
    sent = json.dumps(call() | {"integrations": {"Warehouses": {"all": False}}}).encode()
    assert accepted(sent.replace(b"Warehouses", b"\\u0057arehouses")).collection is None


@pytest.mark.parametrize("kind", ["identify", "page", "screen", "group"])
def test_calls_other_than_track_land_without_a_collection(kind: str) -> None:
    """Calls of the other types land and belong to no table."""
    event = accepted(call_line(type=kind, event=None))
    assert (event.collection, event.message_id) == (None, "m1")


def test_an_alias_may_name_its_user_by_the_previous_id() -> None:
    """An alias call may have only a previous id."""
    assert accepted(call_line(type="alias", event=None, userId=None, previousId="before")).collection is None


def test_a_call_without_a_type_that_names_an_event_is_a_track() -> None:
    """A call that a sender posts to /v1/track need not repeat its type."""
    assert accepted(call_line(type=None)).collection == "email_opened"


@pytest.mark.parametrize("name", ["日本語", "", "🎉"])
def test_an_event_whose_name_gives_no_table_lands_with_an_empty_collection(name: str) -> None:
    """Such an event is a track call too."""
    assert accepted(call_line(event=name)).collection == ""


def test_very_long_event_names_have_tables() -> None:
    """A long name gets the same table each time."""
    name = "Very Long " * 100
    assert {accepted(call_line(event=name)).collection for _ in range(2)} == {table_name(name)}


def test_an_anonymous_id_is_enough() -> None:
    """Iterable sends the e-mail address as anonymousId when it knows no user id."""
    assert accepted(call_line(userId=None, anonymousId="a@b.c")).message_id == "m1"
    assert accepted(call_line(userId="", anonymousId="a@b.c")).message_id == "m1"


def test_white_space_around_a_line_is_no_part_of_it() -> None:
    """Spaces, tabs and the carriage return of a Windows file are ignored."""
    for line in (BASE + b"\r", b"  " + BASE, b"\t" + BASE + b" \t\r"):
        event = accepted(line)
        assert event.payload.strip() == BASE
        assert (event.message_id, event.offset) == ("m1", ANYWHERE)


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n", b" \t \n", b"\n\n\n"])
def test_a_blank_line_is_neither_an_event_nor_a_refusal(data: bytes) -> None:
    """A blank line is neither an event nor a refusal."""
    assert parse(data) == []
    assert parse(data + BASE + b"\n" + data)[0] == Event(BASE, ANYWHERE + len(data), "m1", "email_opened", None)


def test_a_byte_order_mark_is_skipped_only_where_a_file_begins() -> None:
    """A byte order mark at the beginning of a file is skipped. Elsewhere it is invalid JSON."""
    marked = b"\xef\xbb\xbf" + BASE
    assert accepted(marked, 0).payload == BASE
    assert parse(b"\xef\xbb\xbf", 0) == []
    assert refused(marked).reason == Reason.INVALID_JSON


def test_the_last_of_two_equal_keys_counts() -> None:
    """The database also keeps the last value."""
    event = accepted(BASE[:-1] + b',"messageId":"m2","event":"SMS Bounced","properties":1,"properties":{}}')
    assert (event.message_id, event.collection) == ("m2", "sms_bounced")


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", str(2**70).encode(), b"0.1000", b"1" * 5000])
def test_a_number_of_any_size_keeps_all_digits(number: bytes) -> None:
    """A property's number keeps all digits."""
    line = with_value(number)
    assert accepted(line).payload == line


def test_a_moderately_nested_event_lands() -> None:
    """Programs produce nesting of this depth."""
    line = with_value(b"[" * 200 + b"]" * 200)
    assert accepted(line).payload == line


# Message ids


def test_a_missing_message_id_is_made_from_the_line_and_its_place() -> None:
    """The same line at the same place always gets the same id. At another place the line is another event."""
    line = call_line(messageId=None)
    assert accepted(line, 5).message_id == accepted(line, 5).message_id
    assert accepted(line, 5).message_id != accepted(line, 6).message_id
    assert accepted(line, 5).message_id != accepted(call_line(messageId=None, userId="u2"), 5).message_id
    assert len(accepted(line, 5).message_id) <= 100


@pytest.mark.parametrize("given", ["", 1.5, True, [], {}])
def test_an_empty_or_invalid_message_id_counts_as_missing(given: object) -> None:
    """Events with an empty or invalid id get ids from their places."""
    line = call_line(messageId=given)
    assert accepted(line, 5).message_id != accepted(line, 6).message_id
    assert re.fullmatch(r"loader-[0-9a-f]{32}", accepted(line, 5).message_id)


def test_a_message_id_of_a_hundred_characters_is_kept() -> None:
    """The limit is Segment's. It counts characters, not bytes."""
    assert accepted(call_line(messageId="é" * 100)).message_id == "é" * 100


def test_a_longer_message_id_is_replaced_by_its_hash() -> None:
    """Two deliveries of one event get the same id. Two events get two ids."""
    first, second = "a" * 101, "a" * 100 + "b"
    assert accepted(call_line(messageId=first), 5).message_id == accepted(call_line(messageId=first), 99).message_id
    assert accepted(call_line(messageId=first)).message_id != accepted(call_line(messageId=second)).message_id
    assert len(accepted(call_line(messageId=first)).message_id) <= 100


@pytest.mark.parametrize("number", [0, 7, -7, 2**70, 10**99])
def test_a_number_as_message_id_becomes_its_digits(number: int) -> None:
    """A numeric id keeps all digits."""
    assert accepted(call_line(messageId=number)).message_id == str(number)


def test_a_huge_number_as_message_id_is_hashed() -> None:
    """A number of more than a hundred digits is treated like a text of that length."""
    assert accepted(call_line(messageId=10**100), 5).message_id == accepted(call_line(messageId=10**100), 6).message_id
    assert len(accepted(call_line(messageId=10**4000)).message_id) <= 100


# The time of receipt


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("2015-12-12T19:11:01.266Z", datetime(2015, 12, 12, 19, 11, 1, 266_000, tzinfo=UTC)),
        ("2015-12-12T19:11:01Z", datetime(2015, 12, 12, 19, 11, 1, tzinfo=UTC)),
        ("2015-12-12 19:11:01.266123+00:00", datetime(2015, 12, 12, 19, 11, 1, 266_123, tzinfo=UTC)),
        ("2015-12-12T19:11:01.123456789Z", datetime(2015, 12, 12, 19, 11, 1, 123_457, tzinfo=UTC)),
        ("2024-02-29T00:00:00+0530", datetime(2024, 2, 28, 18, 30, tzinfo=UTC)),
        ("2024-01-31T23:59:59.999999999-08", datetime(2024, 2, 1, 8, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_time_of_receipt_is_kept_as_given(value: str, read: datetime) -> None:
    """Segment's raw logs contain the time at which Segment received an event."""
    assert accepted(call_line(receivedAt=value)).received_at == read


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "now",
        "infinity",
        "2015-12-12",
        "2015-12-12T19:11:01",
        "2015-13-12T19:11:01Z",
        "2015-02-29T19:11:01Z",
        "2015-06-31T19:11:01Z",
        "2015-12-12T24:00:00Z",
        "2015-12-12T19:11:60Z",
        "2015-12-12T19:11:01+25:00",
        "2015-W50-6T19:11:01Z",
        "2015-12-12T19:11:01.5",
        "20151212T191101Z",
        "0000-12-12T19:11:01Z",
        "2015-12-12T19:11:01Z\n",
        "٢٠١٥-12-12T19:11:01Z",
        1449947461,
        None,
        {},
    ],
)
def test_an_invalid_time_of_receipt_counts_as_missing(value: object) -> None:
    """An invalid time, or a time that the database may not be able to read, does not cost the event."""
    assert accepted(call_line(receivedAt=value)).received_at is None


# Refusals


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", Reason.INVALID_JSON),
        (b"hello", Reason.INVALID_JSON),
        (b"{'type':'track'}", Reason.INVALID_JSON),
        (BASE + b"," + BASE, Reason.INVALID_JSON),
        (BASE + BASE, Reason.INVALID_JSON),
        (with_value(b"NaN"), Reason.INVALID_JSON),
        (with_value(b'"a\tb"'), Reason.INVALID_JSON),
        (with_value(b'"a\x00b"'), Reason.INVALID_JSON),
        (with_value(b"01"), Reason.INVALID_JSON),
        (BASE[:-1] + b",}", Reason.INVALID_JSON),
        (BASE[:-1], Reason.TRUNCATED_LINE),
        (BASE[:-3], Reason.TRUNCATED_LINE),
        (BASE[:30], Reason.TRUNCATED_LINE),
        (b"{", Reason.TRUNCATED_LINE),
        (with_value(b'"\xff"'), Reason.INVALID_UTF8),
        (with_value(b'"\xed\xa0\x80"'), Reason.INVALID_UTF8),
        (with_value('"é"'.encode("latin-1")), Reason.INVALID_UTF8),
        (b"[" + BASE + b"]", Reason.NOT_OBJECT),
        (b"[]", Reason.NOT_OBJECT),
        (b"null", Reason.NOT_OBJECT),
        (b'"track"', Reason.NOT_OBJECT),
        (b"17", Reason.NOT_OBJECT),
        (with_value(b"[" * 10_000 + b"]" * 10_000), Reason.TOO_DEEP),
        (with_value(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), Reason.TOO_DEEP),
        (b"{}", Reason.BAD_REQUEST),
        (call_line(type="delete"), Reason.BAD_REQUEST),
        (call_line(type="Track"), Reason.BAD_REQUEST),
        (call_line(type=7), Reason.BAD_REQUEST),
        (call_line(type=None, event=None), Reason.BAD_REQUEST),
        (BASE[:-1] + b',"messageId":1e400}', Reason.BAD_REQUEST),
        (call_line(userId=None), Reason.NO_USER_ANON_ID),
        (call_line(userId="", anonymousId=""), Reason.NO_USER_ANON_ID),
        (call_line(type="alias", event=None, userId=None), Reason.NO_USER_ANON_ID),
        (call_line(userId=None, previousId="p"), Reason.NO_USER_ANON_ID),
        (call_line(userId=7), Reason.ID_NOT_STRING),
        (call_line(anonymousId={}), Reason.ID_NOT_STRING),
        (call_line(event=None), Reason.EVENT_NOT_DEFINED),
        (BASE[:-1] + b',"event":null}', Reason.EVENT_NOT_DEFINED),
        (call_line(event=7), Reason.EVENT_NOT_STRING),
        (call_line(event=["Email Opened"]), Reason.EVENT_NOT_STRING),
        (call_line(properties=[]), Reason.PROPERTIES_NOT_OBJECT),
        (call_line(properties="x"), Reason.PROPERTIES_NOT_OBJECT),
        (call_line(properties=False), Reason.PROPERTIES_NOT_OBJECT),
        (call_line(type="identify", traits=7), Reason.TRAITS_NOT_OBJECT),
        (call_line(type="page", name=7), Reason.NAME_NOT_STRING),
        (call_line(type="screen", name=""), Reason.NAME_NOT_STRING),
        (call_line(type="page", category=[]), Reason.CATEGORY_NOT_STRING),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else repr(value[:40]),
)
def test_a_line_that_is_no_call_is_refused_with_a_reason(line: bytes, reason: Reason) -> None:
    """Each refusal has its own reason, the line's bytes, its place and an explanation. Valid lines around it land."""
    refusal = refused(line)
    assert (refusal.reason, refusal.payload, refusal.offset) == (reason, line, ANYWHERE)
    assert refusal.detail
    assert not refusal.repaired

    before, between, after = parse(b"\n".join([BASE, line, BASE]))
    assert isinstance(before, Event)
    assert isinstance(after, Event)
    assert isinstance(between, Refused)
    assert (between.reason, between.offset) == (reason, ANYWHERE + len(BASE) + 1)


@pytest.mark.parametrize("name", ["properties", "traits"])
def test_null_counts_as_a_missing_object(name: str) -> None:
    """Libraries send null for absent objects."""
    line = BASE[:-1] + f',"{name}":null}}'.encode()
    assert accepted(line).payload == line


def test_every_reason_of_this_module_is_tested() -> None:
    """A new reason without a line in this module fails this test."""
    elsewhere = {Reason.LINE_TOO_LONG, Reason.REFUSED_BY_DATABASE, Reason.NUL_CHARACTER, Reason.LONE_SURROGATE}
    elsewhere |= {Reason.EMPTY_BATCH, Reason.EVENT_TOO_LARGE, Reason.TOO_MANY_ITEMS, Reason.BAD_ROW}
    (mark,) = [m for m in test_a_line_that_is_no_call_is_refused_with_a_reason.pytestmark if m.name == "parametrize"]
    assert {reason for _, reason in mark.args[1]} | elsewhere == set(Reason)


def test_an_object_on_two_lines_does_not_change_the_other_lines() -> None:
    """Each event keeps its id if one object is on two lines and two objects are on one line."""
    first, second, third = (call_line(messageId=name) for name in ("a", "b", "c"))
    head, tail = BASE[:-1] + b',"properties":', b'{"x":1}}'
    for odd in ([head, tail], [b""], [b" "]):
        lines = [*odd, first, second, BASE + BASE, third, *odd[:1]]
        kept = [(m.message_id, m.payload) for m in parse(b"\n".join(lines)) if isinstance(m, Event)]
        assert kept == [("a", first), ("b", second), ("c", third)]


# Repairs


@pytest.mark.parametrize(
    ("value", "mended", "reason"),
    [
        (rb'"a\u0000b"', rb'"a\ufffdb"', Reason.NUL_CHARACTER),
        (rb'"\u0000\u0000"', rb'"\ufffd\ufffd"', Reason.NUL_CHARACTER),
        (rb'"\\\u0000"', rb'"\\\ufffd"', Reason.NUL_CHARACTER),
        (rb'"\ud83d"', rb'"\ufffd"', Reason.LONE_SURROGATE),
        (rb'"\ude00"', rb'"\ufffd"', Reason.LONE_SURROGATE),
        (rb'"\ud83d and \ude00"', rb'"\ufffd and \ufffd"', Reason.LONE_SURROGATE),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"', Reason.LONE_SURROGATE),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"', Reason.LONE_SURROGATE),
        (rb'"\ud83d\ude00\ude00"', rb'"\ud83d\ude00\ufffd"', Reason.LONE_SURROGATE),
        (rb'"\uD83D"', rb'"\ufffd"', Reason.LONE_SURROGATE),
        (rb'"\\ud83d\ude00"', rb'"\\ud83d\ufffd"', Reason.LONE_SURROGATE),
        (rb'"\ud83d\\ude00"', rb'"\ufffd\\ude00"', Reason.LONE_SURROGATE),
        (rb'"\ud83d\n\ude00"', rb'"\ufffd\n\ufffd"', Reason.LONE_SURROGATE),
        (rb'"\u0000 \ud83d"', rb'"\ufffd \ufffd"', Reason.NUL_CHARACTER),
        (rb'{"k\u0000":1}', rb'{"k\ufffd":1}', Reason.NUL_CHARACTER),
    ],
)
def test_characters_no_database_text_holds_are_replaced(value: bytes, mended: bytes, reason: Reason) -> None:
    """NUL and unpaired surrogates become U+FFFD. Everything else stays, and the original is kept."""
    assert repaired(with_value(value)) == (with_value(mended), reason)


@pytest.mark.parametrize(
    "value",
    [
        rb'"\ud83d\ude00"',
        rb'"\uD83D\uDE00"',
        rb'"\\u0000"',
        rb'"\\ud83d"',
        rb'"\\\\ude00"',
        rb'"C:\\ud83d\\ude00"',
        rb'"\\\ud83d\ude00"',
        rb'"\ud83d\ude00\\"',
        rb'"\u0001\ue000\uffff"',
        rb'"\u00e9\n\t\"\/"',
    ],
)
def test_valid_escapes_stay_unchanged(value: bytes) -> None:
    """Paired surrogates and escaped backslashes need no repair."""
    line = with_value(value)
    assert accepted(line).payload == line


def test_the_id_and_the_collection_come_from_the_repaired_payload() -> None:
    """The row's id and table come from the repaired payload."""
    event, original = parse(rb'{"type":"track","event":"Email\u0000Opened","userId":"u","messageId":"m\ud83d"}')
    assert isinstance(event, Event)
    assert isinstance(original, Refused)
    assert (event.message_id, event.collection) == ("m\ufffd", "email_opened")


def test_a_line_that_cannot_land_is_refused_without_repair() -> None:
    """A line that cannot land is refused once, with its own bytes."""
    refusal = refused(rb'{"type":"track","event":"E\u0000"}')
    assert (refusal.reason, refusal.payload) == (Reason.NO_USER_ANON_ID, rb'{"type":"track","event":"E\u0000"}')


# Any mix of lines

# With NUL and unpaired surrogates.
TEXT = st.text(alphabet=st.characters(), max_size=5)
GOOD = st.builds(
    call_line,
    event=st.sampled_from(["Email Opened", "Open", "é", ""]),
    messageId=st.one_of(st.none(), TEXT, st.text(min_size=90, max_size=110), st.integers()),
    userId=TEXT.filter(bool),
    receivedAt=st.sampled_from([None, "2015-12-12T19:11:01Z", "nonsense"]),
    properties=st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.none()), max_size=4),
)
BAD = st.one_of(
    st.sampled_from(
        [b"{", b"[]", b"{broken", b"\xff", BASE + BASE, BASE[:-1], BASE[:-1] + b',"userId":7}', b'{"x":1}}']
    ),
    st.binary(max_size=8).map(lambda raw: b"?" + raw.replace(b"\n", b"")),
)
BLANK = st.sampled_from([b"", b"\r", b"  "])
LINES = st.lists(
    st.one_of(GOOD.map(lambda x: (x, "good")), BAD.map(lambda x: (x, "bad")), BLANK.map(lambda x: (x, "blank"))),
    max_size=12,
)


@settings(max_examples=100)
@given(LINES, st.integers(min_value=1, max_value=10**9), st.booleans())
@example([(b"", "blank"), (BASE, "good"), (BASE + BASE, "bad"), (call_line(messageId="m2"), "good")], 1, False)
def test_exactly_the_valid_lines_of_any_mix_become_events(
    lines: list[tuple[bytes, str]], offset: int, ends: bool
) -> None:
    """Exactly the valid lines are accepted, in their order and with their offsets. The invalid lines are refused."""
    data = b"\n".join(line for line, _ in lines) + (b"\n" if ends else b"")
    places, place = [], offset
    for line, _ in lines:
        places.append(place)
        place += len(line) + 1

    messages = parse(data, offset)

    events = [m for m in messages if isinstance(m, Event)]
    refusals = [m for m in messages if isinstance(m, Refused) and not m.repaired]
    good = [at for at, (_, what) in zip(places, lines, strict=True) if what == "good"]
    bad = [(at, line) for at, (line, what) in zip(places, lines, strict=True) if what == "bad"]
    assert [event.offset for event in events] == good
    assert [(refusal.offset, refusal.payload) for refusal in refusals] == bad


@given(LINES, st.integers(min_value=1, max_value=10**9))
def test_the_lines_around_a_line_do_not_change_its_result(lines: list[tuple[bytes, str]], offset: int) -> None:
    """A line becomes the same event or the same refusal, whatever lines are around it."""
    together = parse(b"\n".join(line for line, _ in lines), offset)
    alone: list[Event | Refused] = []
    for line, _ in lines:
        alone += parse(line, offset)
        offset += len(line) + 1
    assert [plain(m) for m in together] == [plain(m) for m in alone]


@given(GOOD, st.integers(min_value=1, max_value=10**9))
def test_the_fast_decoder_and_the_full_parser_give_the_same_event(line: bytes, offset: int) -> None:
    """The fast decoder and the full parser give the same event for a valid line."""
    assert [plain(m) for m in parse_lines(line, offset)] == [plain(m) for m in parse_line(line, offset)]


def plain(message: Event | Refused) -> tuple[object, ...]:
    """Return a message as a tuple, without the white space around it."""
    if isinstance(message, Event):
        return (message.payload.strip(), message.offset, message.message_id, message.collection, message.received_at)
    return (message.payload, message.offset, message.reason, message.detail, message.repaired)
