"""The mapping of calls to Iterable's requests, row by row of the documentation."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.destinations.iterable_calls import Endpoint, Item, UnmappableError, event_id, map_call, merged_body
from loader.destinations.model import Call
from loader.destinations.options import Options

TIME = "2026-03-04T10:00:00.000Z"
SECONDS = 1772618400


def call(**fields: object) -> Call:
    """Return a shaped call."""
    body = {"type": "track", "messageId": "m-1", "userId": "u1", "timestamp": TIME} | fields
    whole = {name: value for name, value in body.items() if value is not None}
    return Call(1, "1", "iterable", str(whole["messageId"]), "u1", TIME, msgspec.json.encode(whole))


def mapped(options: Options | None = None, **fields: object) -> Item:
    """Return the item of a call that has one."""
    item = map_call(call(**fields), options or Options())
    assert item is not None
    return item


def refusal(options: Options | None = None, **fields: object) -> str:
    """Return the reason why a call has no item."""
    with pytest.raises(UnmappableError) as caught:
        map_call(call(**fields), options or Options())
    return caught.value.reason


def test_identify_updates_a_profile() -> None:
    """The phone number has a field of its own, and the address identifies the user."""
    traits = {"email": "a@example.com", "phone": "+15550100", "plan": "pro", "since": TIME, "born": "1990-01-02"}
    item = mapped(type="identify", traits=traits)
    assert item.endpoint is Endpoint.USERS
    assert item.body == {
        "email": "a@example.com",
        "userId": "u1",
        "dataFields": {
            "phone": "+15550100",
            "phoneNumber": "+15550100",
            "plan": "pro",
            "since": "2026-03-04 10:00:00 +00:00",
            "born": "1990-01-02",
        },
        "mergeNestedObjects": False,
    }


def test_track_is_an_event_with_its_own_id() -> None:
    """The time is in seconds, and the campaign is outside the fields too."""
    properties = {"email": "a@example.com", "campaignId": 7, "templateId": "x", "when": {"at": [TIME]}, "gone": None}
    item = mapped(event="Played", properties=properties)
    assert item.endpoint is Endpoint.EVENTS
    assert item.body == {
        "eventName": "Played",
        "email": "a@example.com",
        "userId": "u1",
        "id": "m-1",
        "createdAt": SECONDS,
        "dataFields": {
            "email": "a@example.com",
            "campaignId": 7,
            "templateId": "x",
            "when": {"at": ["2026-03-04 10:00:00 +00:00"]},
        },
        "campaignId": 7,
    }


def test_the_address_of_a_track_call_may_be_in_its_context() -> None:
    """The properties have precedence."""
    context = {"traits": {"email": "b@example.com"}}
    assert mapped(event="E", context=context).email == "b@example.com"
    assert mapped(event="E", context=context, properties={"email": "a@example.com"}).email == "a@example.com"


def test_an_order_becomes_the_same_purchase_as_in_segments_example() -> None:
    """The example is that of Segment's destination."""
    product = {
        "product_id": "507f1f77bcf86cd799439011",
        "name": "Monopoly: 3rd Edition",
        "price": 19,
        "quantity": 1,
        "category": "Games",
        "sku": "45790-32",
        "url": "https://www.example.com/product/path",
        "image_url": "https://www.example.com/product/path.jpg",
        "position": 3,
    }
    item = mapped(
        event="Order Completed",
        userId="user123",
        context={"traits": {"email": "test@example.com", "plan": "pro"}},
        properties={"order_id": 50314, "total": 19.0, "products": [product], "coupon": "x"},
    )
    assert item.endpoint is Endpoint.PURCHASE
    assert item.body == {
        "id": "50314",
        "user": {
            "email": "test@example.com",
            "userId": "user123",
            "dataFields": {"plan": "pro"},
            "mergeNestedObjects": False,
        },
        "items": [
            {
                "id": "507f1f77bcf86cd799439011",
                "name": "Monopoly: 3rd Edition",
                "price": 19,
                "quantity": 1,
                "sku": "45790-32",
                "categories": ["Games"],
                "url": "https://www.example.com/product/path",
                "imageUrl": "https://www.example.com/product/path.jpg",
                "dataFields": {"position": 3},
            }
        ],
        "total": 19.0,
        "createdAt": SECONDS,
        "dataFields": {"order_id": 50314, "total": 19.0, "coupon": "x"},
    }


@pytest.mark.parametrize(
    "properties",
    [
        {"products": [{"id": "1", "name": "Tea", "price": 1}]},
        {"total": 1, "products": [{"id": "1", "price": 1}]},
        {"total": 1, "products": [{"id": "1", "name": "Tea"}]},
        {"total": 1, "products": [{"name": "Tea", "price": 1}]},
        {"total": 1, "products": []},
        {"total": "inf", "products": [{"id": "1", "name": "Tea", "price": 1}]},
    ],
)
def test_an_incomplete_purchase_is_refused(properties: dict[str, Any]) -> None:
    """Without a request, and with its reason."""
    assert refusal(event="Order Completed", properties=properties) == "invalid_purchase"


def test_a_purchase_without_an_order_id_has_the_id_of_its_call() -> None:
    """The revenue stands for a missing total, and one item is meant where there is no quantity."""
    products = [{"productId": 5, "name": "Tea", "price": "3.50"}]
    item = mapped(event="Order Completed", properties={"revenue": 3.5, "products": products})
    assert (item.body["id"], item.body["total"]) == ("m-1", 3.5)
    assert item.body["items"] == [{"id": "5", "name": "Tea", "price": 3.5, "quantity": 1, "dataFields": {}}]


@pytest.mark.parametrize("order_id", [None, "", [1], {"a": 1}, True])
def test_an_order_id_that_is_no_text_or_number_is_replaced(order_id: object) -> None:
    """By the id of the call, as a missing one is."""
    products = [{"product_id": [1], "sku": 7, "name": "Tea", "price": 1, "quantity": 0}]
    properties = {"order_id": order_id, "total": None, "revenue": 2, "products": products}
    item = mapped(event="Order Completed", properties=properties)
    assert (item.body["id"], item.body["total"]) == ("m-1", 2)
    assert item.body["items"] == [{"id": "7", "name": "Tea", "price": 1, "quantity": 0, "sku": "7", "dataFields": {}}]


@pytest.mark.parametrize("value", [b"1e400", b"1" * 5000, b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900])
def test_a_call_with_values_that_cannot_be_mapped_is_refused(value: bytes) -> None:
    """A call that lands may be nested deeper than the mapping can go."""
    body = b'{"type":"track","event":"E","userId":"u","messageId":"m","properties":{"x":' + value + b"}}"
    with pytest.raises(UnmappableError) as caught:
        map_call(Call(1, "1", "iterable", "m", "u", TIME, body), Options())
    assert caught.value.reason == "unreadable"


def test_a_time_of_an_early_year_has_four_digits() -> None:
    """And a text that is no time of the calendar stays."""
    properties = {
        "early": "0099-01-01T00:00:00Z",
        "outside": "0001-01-01T00:00:00+05:00",
        "wrong": "2026-02-30T00:00:00Z",
    }
    assert mapped(event="E", properties=properties).body["dataFields"] == properties | {
        "early": "0099-01-01 00:00:00 +00:00"
    }


def test_carts_are_updated_if_the_settings_say_so() -> None:
    """Otherwise such a call is an event like any other."""
    properties = {"products": [{"id": "1", "name": "Tea", "price": 1}]}
    assert mapped(event="Cart Updated", properties=properties).endpoint is Endpoint.EVENTS
    assert mapped(Options(carts="on"), event="Cart Updated", properties=properties).endpoint is Endpoint.CART
    assert mapped(Options(carts="on"), event="Product Added", properties=properties).endpoint is Endpoint.EVENTS
    classic = Options(carts="classic")
    assert mapped(classic, event="Product Removed", properties=properties).endpoint is Endpoint.CART
    assert mapped(classic, event="Product Added", properties={}).endpoint is Endpoint.EVENTS
    assert mapped(classic, event="Cart Updated", properties={"products": []}).body["items"] == []
    assert refusal(classic, event="Cart Updated", properties={}) == "invalid_purchase"


@pytest.mark.parametrize(
    ("pages", "kind", "name", "event"),
    [
        ("off", "page", "Home", None),
        ("named", "page", "Home", "Home page"),
        ("named", "screen", "Home", "Home screen"),
        ("named", "page", None, None),
        ("all", "page", None, "Loaded a Page"),
    ],
)
def test_pages_and_screens_are_events_if_the_settings_say_so(
    pages: Any, kind: str, name: str | None, event: str | None
) -> None:
    """Pages without a name are left out, or have one name together."""
    item = map_call(call(type=kind, name=name), Options(pages=pages))
    assert (item and item.body["eventName"]) == event


def test_an_alias_changes_an_address_in_email_projects_alone() -> None:
    """Both ids must be addresses."""
    email = Options(project="email", alias="email")
    item = mapped(email, type="alias", previousId="a@example.com", userId="b@example.com")
    assert item.endpoint is Endpoint.EMAIL
    assert item.body == {"currentEmail": "a@example.com", "newEmail": "b@example.com"}
    assert map_call(call(type="alias", previousId="x", userId="b@example.com"), email) is None
    hybrid = Options(alias="email")
    assert map_call(call(type="alias", previousId="a@example.com", userId="b@example.com"), hybrid) is None
    assert map_call(call(type="alias", previousId="a@example.com", userId="b@example.com"), Options()) is None


def test_a_group_is_left_out_or_written_into_the_profile() -> None:
    """Off by default."""
    assert map_call(call(type="group", groupId="g", traits={"name": "Acme"}), Options()) is None
    item = mapped(Options(group="fields"), type="group", groupId="g", traits={"name": "Acme"})
    assert item.body["dataFields"] == {"group": {"name": "Acme"}}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"userId": None, "anonymousId": "a"}, "no_user"),
        ({"userId": "", "anonymousId": "a"}, "no_user"),
        ({"userId": "x" * 53}, "invalid_user_id"),
        ({"userId": "ü"}, "invalid_user_id"),
        ({"userId": "a "}, "invalid_user_id"),
        ({"properties": {"email": "no address"}}, "invalid_email"),
        ({"properties": {"email": "a@" + "x" * 260}}, "invalid_email"),
        ({"event": ""}, "no_event_name"),
        ({"properties": {"text": "x" * 32_001}}, "long_text"),
    ],
)
def test_calls_that_iterable_would_refuse_are_refused_without_a_request(fields: dict[str, Any], reason: str) -> None:
    """The anonymous id is never a user id."""
    assert refusal(**({"event": "E"} | fields)) == reason


def test_a_project_of_user_ids_refuses_a_call_without_a_user_id() -> None:
    """An address alone identifies nobody there."""
    options = Options(project="userid")
    fields: dict[str, Any] = {"event": "E", "userId": None, "properties": {"email": "a@example.com"}}
    assert refusal(options, **fields) == "no_user"
    assert mapped(Options(project="email"), **fields).user_id == ""


def test_fields_that_iterable_manages_are_left_out_and_counted() -> None:
    """They would be refused, or would overwrite Iterable's own."""
    traits = {"itblDS": 1, "devices": [], "subscribedMessageTypeIds": [], "signupDate": TIME, "plan": "pro"}
    item = mapped(type="identify", traits=traits)
    assert item.body["dataFields"] == {"plan": "pro"}
    assert sum(item.notes.values()) == 4


def test_nulls_and_long_texts_follow_the_settings() -> None:
    """Both are for people who know what their project does with them."""
    options = Options(nulls="send", long="cut")
    item = mapped(options, event="E", properties={"gone": None, "text": "x" * 40_000})
    assert item.body["dataFields"]["gone"] is None
    assert len(item.body["dataFields"]["text"]) == 32_000


@pytest.mark.parametrize("message_id", ["m_1", "ü", "a b", "x" * 600])
def test_an_id_that_iterable_refuses_is_replaced_by_its_digest(message_id: str) -> None:
    """The same id gives the same digest, so a repeat updates the same event."""
    assert len(event_id(message_id)) == 32
    assert event_id(message_id) == event_id(message_id)
    assert event_id("abc-123") == "abc-123"


def test_several_updates_of_one_user_become_one() -> None:
    """Objects are merged only if the settings say so."""
    first = mapped(type="identify", traits={"a": 1, "address": {"city": "Graz", "zip": 1}})
    second = mapped(type="identify", traits={"b": 2, "address": {"city": "Linz"}})
    assert merged_body([first, second], nested=False)["dataFields"] == {"a": 1, "b": 2, "address": {"city": "Linz"}}
    merged = merged_body([first, second], nested=True)["dataFields"]
    assert merged["address"] == {"city": "Linz", "zip": 1}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(
    st.sampled_from(["email", "total", "products", "order_id", "name", "campaignId", "phone", "x"]), JSON, max_size=5
)


@given(
    kind=st.sampled_from(["track", "identify", "page", "screen", "group", "alias"]),
    event=st.sampled_from(["E", "Order Completed", "Cart Updated", "Product Added", ""]),
    user=JSON,
    properties=OBJECTS | JSON,
    traits=OBJECTS | JSON,
    project=st.sampled_from(["hybrid", "userid", "email"]),
)
def test_any_call_becomes_a_valid_item_or_a_named_refusal(  # noqa: PLR0917 - Hypothesis passes them by name
    kind: str, event: str, user: Any, properties: Any, traits: Any, project: Any
) -> None:
    """No call raises any other error, and each item is JSON with a user."""
    options = Options(project=project, carts="classic", pages="all", alias="email", group="fields")
    given_call = call(type=kind, event=event, userId=user, properties=properties, traits=traits)
    try:
        item = map_call(given_call, options)
    except UnmappableError:
        return
    if item is None:
        return
    body = json.loads(msgspec.json.encode(item.body))
    if item.endpoint in {Endpoint.USERS, Endpoint.EVENTS}:
        assert body.get("email") or body.get("userId")
    if item.endpoint is Endpoint.EVENTS:
        assert isinstance(body["createdAt"], int)
