"""Iterable's bodies and rows become track calls, and a call has one id for all entrances."""

import csv
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.events.formats import ITERABLE_WEBHOOK, export_entrance, parse_chunk, parse_message
from loader.events.iterable import parse_export, parse_export_lines, parse_webhook, sent_text
from loader.events.iterable_types import KINDS, SEGMENT_EVENTS
from loader.events.model import Event, Reason, Refused
from tests.support.folders import DATA

WEBHOOKS = [
    json.loads(line)["webhook"]
    for line in (DATA / "example_payloads.jsonl").read_text(encoding="utf-8").splitlines()
    if '"webhook"' in line
]
with (DATA / "property_catalog.csv").open(encoding="utf-8", newline="") as catalog:
    # Properties in rows of real exports, by Segment's name.
    EXPORTED: dict[str, set[str]] = {event: set() for event in SEGMENT_EVENTS.values()}
    for entry in csv.DictReader(catalog):
        if {"ab", "singer"} & set(entry["attested_by"].split(";")):
            EXPORTED[entry["collection"]].add(entry["property_json_name"].partition(".")[0])
FIELDS: dict[str, Any] = {
    "campaignId": 4310021,
    "messageId": "d95878a685da4ce1bbe023e058f4d8fe",
    "createdAt": "2026-03-04 15:20:11 +00:00",
    "email": "maria@example.com",
}
CREATED = [
    "2026-03-04 15:20:11 +00:00",
    "2026-03-04 15:20:11 +0000",
    "2026-03-04 15:20:11",
    "2026-03-04T15:20:11+00:00",
    "2026-03-04T15:20:11.000Z",
    "2026-03-04T15:20:11.134105.000Z",
    1772637611000,
    1772637611,
    "1772637611000",
]
# Fields that distinguish two events with equal other fields.
DISCRIMINATORS = {
    "campaignId": (1, 2),
    "messageId": ("m1", "m2"),
    "platformEndpoint": ("e1", "e2"),
    "browserToken": ("b1", "b2"),
    "deviceInfo": ({"deviceId": "d1"}, {"deviceId": "d2"}),
    "url": ("https://a", "https://b"),
    "linkUrl": ("https://a", "https://b"),
    "clickedUrl": ("https://a", "https://b"),
    "hrefIndex": (1, 2),
    "ip": ("192.0.2.1", "192.0.2.2"),
    "userAgent": ("a", "b"),
    "createdAt": ("2026-03-04 15:20:11 +00:00", "2026-03-04 15:20:12 +00:00"),
    "email": ("a@example.com", "b@example.com"),
}


def body(kind: str = "emailOpen", fields: dict[str, Any] | None = None, **envelope: Any) -> bytes:
    """Return the body of a webhook."""
    fields = FIELDS if fields is None else fields
    return json.dumps({"eventName": kind, "dataFields": fields} | envelope, ensure_ascii=False).encode()


def accepted(data: bytes, kind: str | None = None) -> Event:
    """Return the only result of a message, which must be an event; a kind makes the message a row of an export."""
    (event,) = parse_export(data, 0, kind) if kind else parse_webhook(data)
    assert isinstance(event, Event), event
    return event


def call(data: bytes, kind: str | None = None) -> dict[str, Any]:
    """Return the track call that a message becomes."""
    made = json.loads(accepted(data, kind).payload)
    assert made["type"] == "track"
    assert made["messageId"] == accepted(data, kind).message_id
    return made


def refused(data: bytes, kind: str | None = None) -> Refused:
    """Return the only result of a message, which must be a refusal."""
    (refusal,) = parse_export(data, 7, kind) if kind else parse_webhook(data, 7)
    assert isinstance(refusal, Refused)
    assert refusal.payload == data
    assert refusal.offset == 7
    return refusal


def identity(kind: str, fields: dict[str, Any]) -> str:
    """Return the id of an event that came by webhook."""
    return accepted(body(kind, fields)).message_id


# The call


def test_an_event_without_a_user_id_belongs_to_its_address() -> None:
    """As at Segment, the user id counts first, and then the e-mail address as anonymous id."""
    with_id, without = call(body(userId="u1", email="maria@example.com")), call(body(email="maria@example.com"))
    assert (with_id["userId"], "anonymousId" in with_id) == ("u1", False)
    assert (without["anonymousId"], "userId" in without) == ("maria@example.com", False)
    assert with_id["context"]["traits"] == without["context"]["traits"] == {"email": "maria@example.com"}


def test_the_envelopes_address_comes_first() -> None:
    """The address among the properties stays there."""
    made = call(body(email="envelope@example.com"))
    assert (made["anonymousId"], made["properties"]["email"]) == ("envelope@example.com", "maria@example.com")


@pytest.mark.parametrize(
    ("kind", "user"),
    [("smsSend", "+14155550187"), ("smsReceived", "+14155550141"), ("whatsAppReceived", "+14155550141")],
)
def test_the_phone_number_identifies_a_user_without_id_and_address(kind: str, user: str) -> None:
    """The phone number is the recipient's, or the sender's of an inbound message."""
    fields = {"fromPhoneNumber": "+14155550141", "toPhoneNumber": "+14155550187"}
    assert call(body(kind, fields))["anonymousId"] == user


def test_no_digit_of_a_number_is_lost() -> None:
    """Numbers keep their text."""
    data = b'{"eventName":"emailOpen","email":"m@x","dataFields":{"a":1180591620717411303424,"b":1.10,"c":1e400}}'
    payload = accepted(data).payload
    assert b'"a":1180591620717411303424,"b":1.10,"c":1e400' in payload
    assert payload.endswith(b'"native":' + data + b"}")


def test_a10_an_unreadable_time_stays_unchanged_as_the_time_of_the_call() -> None:
    """The time keeps its text. A run finds that it cannot read the time, and records a mismatch."""
    made = call(body(fields=FIELDS | {"createdAt": "soon"}))
    assert made["timestamp"] == "soon"
    assert made["properties"]["createdAt"] == "soon"


def test_a10_a_number_that_is_no_time_stays_the_time_of_the_call() -> None:
    """A run records a mismatch here too. A value that is neither text nor number is not a time."""
    assert call(body(fields=FIELDS | {"createdAt": 10**18}))["timestamp"] == 10**18
    for value in (True, None, "", {}, []):
        assert "timestamp" not in call(body(fields=FIELDS | {"createdAt": value}))


def test_opens_and_clicks_have_the_users_device_in_their_context() -> None:
    """Opens and clicks have the device in their context. Other events may have a property of such a name."""
    client = {"ip": "192.0.2.1", "userAgent": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X)"}
    opened, subscribed = call(body("emailOpen", FIELDS | client)), call(body("emailSubscribe", FIELDS | client))
    assert {name: opened["context"][name] for name in ("ip", "userAgent", "os")} == client | {"os": {"name": "iOS"}}
    assert not client.keys() & opened["properties"].keys()
    assert client.items() <= subscribed["properties"].items()


@pytest.mark.parametrize(
    ("kind", "event", "table"),
    [
        ("emailSend", "Email Delivered", "email_delivered"),
        ("EMAILSEND", "Email Delivered", "email_delivered"),
        ("blastSend", "Email Delivered", "email_delivered"),
        ("triggeredSend", "Email Delivered", "email_delivered"),
        ("emailUnsubscribe", "Unsubscribed", "unsubscribed"),
        ("pushUninstall", "Mobile App Uninstalled", "mobile_app_uninstalled"),
        ("embeddedClick", "embeddedClick", "embedded_click"),
        ("embeddedclick", "embeddedClick", "embedded_click"),
        ("somethingNew", "somethingNew", "something_new"),
        ("日本語", "日本語", ""),
    ],
)
def test_an_event_has_segments_name_or_iterables_name(kind: str, event: str, table: str) -> None:
    """An event that Segment does not get keeps Iterable's name."""
    made = accepted(body(kind))
    assert (json.loads(made.payload)["event"], made.collection) == (event, table)


# Refusals


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.INVALID_JSON),
        (b"hello", Reason.INVALID_JSON),
        (b"[1,", Reason.INVALID_JSON),
        (b'"text"', Reason.NOT_OBJECT),
        (b'{"eventName":"emailOpen"', Reason.TRUNCATED_LINE),
        (b'{"eventName":"\xff"}', Reason.INVALID_UTF8),
        (b'{"eventName":"a","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", Reason.TOO_DEEP),
        (b"{}", Reason.EVENT_NOT_DEFINED),
        (body(None), Reason.EVENT_NOT_DEFINED),
        (body(7), Reason.EVENT_NOT_STRING),
        (body(fields=[]), Reason.PROPERTIES_NOT_OBJECT),
        (body(fields={}), Reason.NO_USER_ANON_ID),
        (body(email={}), Reason.ID_NOT_STRING),
        (body(userId=True), Reason.ID_NOT_STRING),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else repr(value[:40]),
)
def test_a_message_that_cannot_become_an_event_is_refused_with_a_reason(data: bytes, reason: Reason) -> None:
    """The refusal has the message's bytes, place and an explanation."""
    assert refused(data).reason == reason
    assert refused(data).detail


def test_a_bad_element_of_an_array_is_refused_alone() -> None:
    """Each element of an array has its own bytes and place."""
    bad = [b"7", b'{"eventName":"\xff"}', b"{}", b"[]"]
    elements = [body(email="a@x"), bad[0], body(email="b@x"), *bad[1:], body(email="c@x")]
    data = b" [ " + b" ,\n".join(elements) + b" ] "
    messages = parse_webhook(data, 100)
    assert [m.payload if isinstance(m, Refused) else sent_text(m.payload) for m in messages] == elements
    assert [data[m.offset - 100 :].startswith(e) for m, e in zip(messages, elements, strict=True)] == [True] * 7
    assert [type(m) for m in messages] == [Event, Refused, Event, Refused, Refused, Refused, Event]
    assert parse_webhook(b"[]") == []


def test_characters_no_text_can_hold_are_replaced() -> None:
    """The event lands, and its original bytes are kept."""
    data = b'{"eventName":"emailOpen","email":"m@x","dataFields":{"a":"x\\u0000","b":"\\ud800"}}'
    event, refusal = parse_webhook(data, 3)
    assert isinstance(event, Event)
    assert json.loads(event.payload)["properties"]["a"] == "x\ufffd"
    assert isinstance(refusal, Refused)
    assert (refusal.payload, refusal.repaired, refusal.offset) == (data, True, event.offset)


@settings(max_examples=40)
@given(
    st.binary(max_size=200)
    | st.text().map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *"ab.",
                        "email",
                        "userId",
                        "eventName",
                        "dataFields",
                        "createdAt",
                        "campaignId",
                        "emailListIds",
                        "deviceInfo",
                        "deviceInfo.x",
                        "a.b",
                    ]
                ),
                inner,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_give_an_event_or_a_refusal(data: bytes) -> None:
    """Any bytes give an event or a refusal, and the call of an event is JSON."""
    for messages in (parse_webhook(data), parse_export(data, 0, "emailSend"), parse_export(data, 0, "purchase")):
        for message in messages:
            assert isinstance(message, Refused) or isinstance(json.loads(message.payload), dict)
        is_repaired = any(isinstance(message, Refused) and message.repaired for message in messages)
        for event in messages:
            assert isinstance(event, Refused) or is_repaired or sent_text(event.payload) in data


@pytest.mark.parametrize(
    "value",
    ["1", "1.50", "1e200000", '"]}, \\"native\\": [{"', "[" * 500 + "]" * 500, '{"native":{"native":1}}', "[ 1 , 2 ]"],
)
def test_the_message_is_found_in_its_call(value: str) -> None:
    """Byte for byte, so that the loader keeps no second copy for the quarantine."""
    row = f'{{"native":7 , "email":"m@x","native.x":{value}, "x":{value}}}'.encode()
    data = b'{"native":7, "eventName":"emailOpen","dataFields":' + row + b"}"
    assert sent_text(accepted(data).payload) == data
    assert sent_text(accepted(row, "emailOpen").payload) == row


def test_a_number_of_five_thousand_digits_lands_unchanged() -> None:
    """The number lands unchanged."""
    digits = "9" * 5000
    data = body(fields=FIELDS | {"campaignId": 0}).replace(b'"campaignId": 0', f'"campaignId": {digits}'.encode())
    assert digits.encode() in accepted(data).payload


# Ids


def test_the_examples_are_all_different_events() -> None:
    """They include two devices of one user in the same second."""
    assert len({accepted(json.dumps(webhook).encode()).message_id for webhook in WEBHOOKS}) == len(WEBHOOKS)


@given(
    webhook=st.sampled_from(WEBHOOKS),
    nulls=st.sets(st.sampled_from(["workflowId", "experimentId", "locale", "browserToken", "nobody"])),
    created=st.booleans(),
    data=st.data(),
)
def test_the_spelling_of_a_message_is_no_part_of_its_id(
    webhook: dict[str, Any], nulls: set[str], data: st.DataObject, *, created: bool
) -> None:
    """Another order, more nulls, another form of the time, and numbers as text give the same id."""
    fields = dict.fromkeys(nulls) | webhook["dataFields"]
    if created:
        fields["createdAt"] = fields["createdAt"].replace(" +00:00", data.draw(st.sampled_from(["Z", " +0000", ""])))
    names = data.draw(st.permutations(list(fields)))
    as_text = {name: str(fields[name]) if type(fields[name]) is int else fields[name] for name in names}
    again = {"dataFields": as_text} | dict(reversed(list(webhook.items()))) | {"dataFields": as_text}
    ids = {accepted(json.dumps(form).encode()).message_id for form in (webhook, again)}
    assert len(ids) == 1


@pytest.mark.parametrize("kind", ["emailOpen", "purchase"])
def test_every_form_of_a_time_gives_the_same_id(kind: str) -> None:
    """A webhook has the second and no fraction."""
    assert len({identity(kind, FIELDS | {"createdAt": created}) for created in CREATED}) == 1


@given(
    kind=st.sampled_from(sorted(set(KINDS) - {"emailSubscribe", "emailUnSubscribe"})),
    name=st.sampled_from(sorted(DISCRIMINATORS)),
)
def test_devices_links_messages_users_and_seconds_are_part_of_an_id(kind: str, name: str) -> None:
    """Two devices, links, messages, users or seconds give two ids."""
    first, second = DISCRIMINATORS[name]
    assert identity(kind, FIELDS | {name: first}) != identity(kind, FIELDS | {name: second})


@pytest.mark.parametrize("kind", ["emailSubscribe", "emailUnSubscribe"])
@pytest.mark.parametrize("name", ["emailListIds", "emailListId", "channelIds", "messageTypeIds", "userListIds"])
def test_two_lists_are_two_subscriptions(kind: str, name: str) -> None:
    """A user who joins two lists in one second gives two events."""
    assert identity(kind, FIELDS | {name: [1]}) != identity(kind, FIELDS | {name: [2]})
    assert identity(kind, FIELDS | {name: []}) == identity(kind, FIELDS)
    assert identity(kind, FIELDS | {"emailListId": 1}) == identity(kind, FIELDS | {"emailListIds": [1]})


def test_every_property_of_an_undocumented_kind_is_part_of_the_id() -> None:
    """For a kind without documentation, each property is part of the id."""
    assert identity("purchase", FIELDS | {"total": 1}) != identity("purchase", FIELDS | {"total": 2})
    assert identity("purchase", FIELDS | {"a": {"b": 1, "c": 2}}) == identity(
        "purchase", FIELDS | {"a": {"c": 2, "b": 1}}
    )
    whole = FIELDS | {"transactionalData": {"a": 1}}
    assert identity("purchase", whole) == identity("purchase", FIELDS | {"transactionalData": '{"a": 1}'})


# Exports


def test_an_exported_row_has_the_same_id_as_the_webhook() -> None:
    """The row has fewer fields, and texts in place of other types. The id is the same."""
    fields = FIELDS | {
        "platformEndpoint": "e1",
        "transactionalData": {"a": 1},
        "campaignName": "Spring",
        "channelId": 7,
    }
    row = {name: str(fields[name]) for name in ("campaignId", "messageId", "createdAt", "email", "platformEndpoint")}
    row |= {
        "transactionalData": json.dumps({"a": 1}),
        "itblInternal.documentCreatedAt": "2026",
        "contentAvailable": "true",
    }
    made = call(json.dumps(row).encode(), "pushSend")
    assert made["messageId"] == identity("pushSend", fields)
    assert made["properties"] == {name: fields[name] for name in row if name in fields} | {"contentAvailable": True}
    assert made["native"] == row


@pytest.mark.parametrize("kind", sorted({webhook["eventName"] for webhook in WEBHOOKS} & set(SEGMENT_EVENTS)))
def test_an_id_needs_no_field_that_exports_lack(kind: str) -> None:
    """Devices and message types count where they are present.

    A kind without a documented export may need other fields.
    """
    exported = EXPORTED[SEGMENT_EVENTS[kind]]
    counting = {"platformEndpoint", "browserToken", "deviceInfo", "messageTypeIds"}
    for webhook in WEBHOOKS:
        if webhook["eventName"] == kind and exported:
            fields = webhook["dataFields"]
            row = {name: value for name, value in fields.items() if name in exported | counting}
            ids = {accepted(body(kind, form, userId=webhook.get("userId"))).message_id for form in (row, fields)}
            assert len(ids) == 1


@pytest.mark.parametrize("webhook", WEBHOOKS, ids=lambda webhook: webhook["eventName"])
def test_a_row_of_text_has_the_properties_of_the_webhook(webhook: dict[str, Any]) -> None:
    """A row of flattened texts gets the properties of the webhook."""
    row = {"userId": webhook.get("userId")}
    for name, value in webhook["dataFields"].items():
        if isinstance(value, dict) and name not in ("payload", "transactionalData"):
            row |= {f"{name}.{key}": inner for key, inner in value.items() if inner is not None}
        else:
            row[name] = value
    row = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items() if value is not None
    }
    made, meant = call(json.dumps(row).encode(), webhook["eventName"]), call(json.dumps(webhook).encode())
    if isinstance(text := meant["properties"].get("transactionalData"), str):
        # A webhook may have a text here too, and the text stays.
        meant["properties"]["transactionalData"] = json.loads(text)
    assert {name: made[name] for name in made if name != "native"} == {
        name: meant[name] for name in meant if name != "native"
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("campaignId", "4310021", 4310021),
        ("campaignId", "4310021.0", 4310021),
        ("campaignId", "unknown", "unknown"),
        ("campaignId", "007", "007"),
        ("isBot", "TRUE", True),
        ("isBot", "yes", "yes"),
        ("emailListIds", "[1, 2]", [1, 2]),
        ("emailListIds", "1, 2", "1, 2"),
        ("transactionalData", '{"a":', '{"a":'),
        ("transactionalData", '{"a": "\\u0000"}', '{"a": "\\u0000"}'),
        ("region", "07", "07"),
        ("somethingNew", "12", "12"),
    ],
)
def test_a_text_is_converted_to_the_type_of_its_property(name: str, text: str, value: object) -> None:
    """A text is converted if its property is known to have another type and the text fits.

    Unknown properties stay text.
    """
    assert call(json.dumps({"email": "m@x", name: text}).encode(), "emailSend")["properties"][name] == value


def test_dotted_names_are_objects() -> None:
    """If a value and an object have the same name, both are kept."""
    row = {"email": "m@x", "dataFields.a.b": "1", "dataFields.c": 2, "d": 3, "d.e": 4, "f.g": 5, "f": 6}
    assert call(json.dumps(row).encode(), "customEvent")["properties"] == {
        "email": "m@x",
        "dataFields": {"a": {"b": "1"}, "c": 2},
        "d": 3,
        "d.e": 4,
        "f": {"g": 5},
        "f.": 6,
    }


def test_the_messages_of_a_file_have_the_offsets_of_their_lines() -> None:
    """Blank lines are skipped, and a line that is not a row is refused alone."""
    good = json.dumps({"email": "m@x"}).encode()
    data = good + b"\n\nnot,a,row\n" + good[:-1] + b"\n" + good
    messages = parse_export_lines(data, 50, "emailSend")
    assert messages == parse_chunk(export_entrance("emailSend"), data, 50)
    reasons = [m.reason if isinstance(m, Refused) else None for m in messages]
    assert reasons == [None, Reason.BAD_ROW, Reason.TRUNCATED_LINE, None]
    assert [data[m.offset - 50 :][:5] for m in messages] == [good[:5], b"not,a", good[:5], good[:5]]


def test_a_message_is_read_by_the_rules_of_its_entrance() -> None:
    """The quarantine records the entrance, so a retry follows the rules of the first attempt."""
    track = b'{"type":"track","event":"A","userId":"u"}'
    (webhook,) = parse_message(ITERABLE_WEBHOOK, body(), 0)
    (row,) = parse_message(export_entrance("emailOpen"), json.dumps(FIELDS).encode(), 0)
    assert isinstance(webhook, Event)
    assert isinstance(row, Event)
    assert webhook.message_id == row.message_id
    for entrance in ("file", "track"):
        (event,) = parse_message(entrance, track, 0)
        assert isinstance(event, Event)
        assert event.payload == track
