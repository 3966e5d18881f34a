"""The expected marts give the numbers of the contract's worked corners, and obey its laws on nasty events."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from tests.support.marts.compare import assert_marts_equal, find_differences
from tests.support.marts.expected import KEYS, expected_marts
from tests.support.marts.performance import SUMS
from tests.support.marts.served import serve
from tests.support.marts.values import Row, ids_in, link_of, number, quotient, time_of
from tests.support.marts.variables import DEFAULT_MODELS, Variables
from tests.support.nasty_events import CONVERSION, NastyEvents, generate_nasty_events
from tests.support.served_tables import COLLECTIONS

ANN = "ann@example.com"
ORDERS = ("app", "order_completed")


def at(clock: str, day: str = "2026-03-04") -> datetime:
    """Return a time in UTC."""
    return datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=UTC)


class Story:
    """Calls of one user, each with an id of its own."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.orders: list[Row] = []

    def add(
        self,
        event: str,
        clock: str,
        *,
        day: str = "2026-03-04",
        user: str | None = "u1",
        call_id: str | None = None,
        **properties: Any,
    ) -> None:
        """Add a call; a user of None leaves the address alone."""
        self.calls.append(
            {
                "type": "track",
                "messageId": call_id or f"{len(self.calls):04}",
                "event": event,
                **({"userId": user} if user else {"anonymousId": ANN}),
                "timestamp": at(clock, day).isoformat(),
                "context": {"traits": {"email": ANN}},
                "properties": {"createdAt": f"{day} {clock} +00:00", **properties},
            }
        )

    def order(self, name: str, clock: str, *, day: str = "2026-03-04", user: str | None = "u1", **columns: Any) -> None:
        """Add a row of the app's orders."""
        self.orders.append({"id": name, "user_id": user, "email": ANN, "timestamp": at(clock, day), **columns})

    def marts(self, **variables: Any) -> dict[str, list[Row]]:
        """Return the expected marts."""
        wanted = Variables(**({"conversion_events": (CONVERSION,), "as_of_date": date(2026, 3, 5)} | variables))
        return expected_marts(serve(self.calls), {ORDERS: self.orders}, wanted)


def only(rows: Sequence[Row], **values: Any) -> Row:
    """Return the one row with some values."""
    [row] = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return row


def has(row: Row, **values: Any) -> None:
    """Check some values of a row."""
    assert {name: row[name] for name in values} == values


def test_corner_a_an_open_by_a_machine_is_no_human_open() -> None:
    """An Apple open is a machine's, a late event finds its place, and the first call with an id counts."""
    story = Story()
    story.add("Email Delivered", "10:00:00", campaignId=7, messageId="m1")
    story.add("Email Opened", "10:00:03", campaignId=7, messageId="m1", proxySource="Apple")
    story.add("Email Opened", "12:00:00", campaignId=7, messageId="m1", proxySource="Gmail", isBot=False)
    story.add("Email Opened", "11:00:00", campaignId=7, messageId="m1", user=None)
    url = "https://A.example.com/X?u=1#t"
    story.add("Email Link Clicked", "11:30:00", campaignId=7, messageId="m1", url=url, call_id="click")
    story.add("Email Link Clicked", "11:40:00", campaignId=7, messageId="m2", url=url, call_id="click")
    marts = story.marts()
    [message] = marts["messages"]
    has(message, message_key="m:m1", opens=3, human_opens=2, clicks=1, delivered=1, user_key="u:u1")
    has(message, first_open_at=at("10:00:03"), first_human_open_at=at("11:00:00"))
    has(message, seconds_to_first_open=3600, seconds_to_first_click=5400)
    has(only(marts["campaign_performance"], campaign_id=7), unique_opens=1, open_rate=1, click_to_open_rate=1)
    assert only(marts["link_performance"])["link"] == "https://a.example.com/X"


def test_corner_b_a_push_to_two_devices_is_one_message() -> None:
    """A bounce without a message id belongs to the send of its campaign, and a tap is worth a click."""
    story = Story()
    story.add("Push Delivered", "10:00:00", campaignId=8, messageId="p1")
    story.add("Push Delivered", "10:00:00", campaignId=8, messageId="p1")
    story.add("Push Bounced", "10:00:00", campaignId=8)
    story.add("Push Opened", "10:00:30", campaignId=8, messageId="p1")
    story.order("o", "11:00:00", revenue=10, currency="eur")
    marts = story.marts()
    has(only(marts["messages"]), sends=2, bounces=1, delivered=1, opens=1, clicks=0)
    assert only(marts["campaign_performance"])["delivery_rate"] == Decimal("0.5")
    earned = only(marts["campaign_conversions"], model="last_click")
    has(earned, currency="EUR", conversions=1, revenue=10, revenue_per_thousand=10000)
    assert [row["recipients"] for row in marts["funnel"]] == [1, 1, 1, 1, 1]


def test_corner_c_an_event_without_message_id_belongs_to_the_last_send() -> None:
    """An event belongs to the last send at or before its own time, of the same user key."""
    story = Story()
    for event, clock, user in [
        ("Opened", "09:00:00", "u1"),
        ("Sent", "10:00:00", "u1"),
        ("Opened", "10:30:00", "u1"),
        ("Sent", "11:00:00", "u1"),
        ("Opened", "11:00:00", "u1"),
        ("Opened", "12:00:00", None),
    ]:
        story.add(f"In App {event}", clock, campaignId=9, user=user)
    marts = story.marts()
    assert {row["message_key"]: (row["sends"], row["opens"], row["first_open_at"]) for row in marts["messages"]} == {
        "f:in_app:9:1772618400:u:u1": (1, 1, at("10:30:00")),
        "f:in_app:9:1772622000:u:u1": (1, 1, at("11:00:00")),
        "f:in_app:9:-:u:u1": (0, 1, at("09:00:00")),
        "f:in_app:9:-:e:ann@example.com": (0, 1, at("12:00:00")),
    }


def test_corner_d_an_open_without_its_send_makes_a_message() -> None:
    """An open alone makes a message, and no rate has a denominator."""
    story = Story()
    story.add("Email Opened", "10:00:00", campaignId=10, messageId="x")
    row = only(story.marts()["campaign_performance"])
    has(row, messages=1, messages_without_send=1, sends=0, unique_opens=1, open_rate=None)


def test_corner_e_three_bounces_are_one_message_that_did_not_arrive() -> None:
    """Three bounces of one message are one message that did not arrive."""
    story = Story()
    story.add("Email Delivered", "10:00:00", campaignId=11, messageId="y")
    for state in ("SoftBounceGeneral", "MailBlockGeneral", "DNSFailure"):
        story.add("Email Bounced", "10:00:05", campaignId=11, messageId="y", recipientState=state)
    story.add("Unsubscribed", "10:00:06", messageId="y", unsubSource="HardBounce", channelIds=[1, 2])
    story.add("Unsubscribed", "10:00:07", campaignId=11, unsubSource="EmailLink")
    story.add("Unsubscribed", "10:00:08", unsubSource="API", emailListIds=[5])
    marts = story.marts()
    counts = {"bounces": 3, "soft_bounces": 2, "block_bounces": 1, "unsubscribes": 2, "recipient_unsubscribes": 1}
    has(only(marts["messages"]), delivered=0, bounce_class="block", **counts)
    has(only(marts["campaign_performance"]), bounce_rate=3, **counts)
    assert only(marts["events"], id="0006")["message_key"] is None
    left = {(row["target_type"], row["target_id"]) for row in marts["subscriptions"]}
    assert left == {("channel", 1), ("channel", 2), ("unspecified", 0), ("list", 5)}


def test_corner_f_a_repeated_state_continues_its_period() -> None:
    """A repeated state continues a period, and an unsubscribe wins its second."""
    story = Story()
    for event, clock, source in [
        ("Subscribed", "10:00:00", "WebForm"),
        ("Subscribed", "10:01:00", "WebForm"),
        ("Unsubscribed", "10:02:00", "EmailLink"),
        ("Subscribed", "10:02:00", "WebForm"),
        ("Subscribed", "10:03:00", "API"),
    ]:
        story.add(event, clock, emailListIds=[5], signupSource=source, unsubSource=source)
    marts = story.marts()
    assert [(row["state"], row["valid_from"], row["valid_to"]) for row in marts["subscription_history"]] == [
        ("subscribed", at("10:00:00"), at("10:02:00")),
        ("unsubscribed", at("10:02:00"), at("10:03:00")),
        ("subscribed", at("10:03:00"), None),
    ]
    has(only(marts["subscriptions"]), state="subscribed", since=at("10:03:00"), source="API", changes=2, events=5)


@cache
def attribution() -> Mapping[str, list[Row]]:
    """Return the marts of corner G."""
    story = Story()
    for campaign, message in enumerate("XYZ", start=1):
        story.add("Email Delivered", "10:00:00", day="2026-03-01", campaignId=campaign, messageId=message)
    story.add("Email Link Clicked", "12:00:00", day="2026-03-01", campaignId=1, messageId="X")
    story.add("Email Link Clicked", "12:00:00", day="2026-03-03", campaignId=2, messageId="Y")
    story.add("Email Opened", "12:00:00", campaignId=3, messageId="Z")
    story.add("Email Link Clicked", "12:30:00", campaignId=3, messageId="Z", isBot=True)
    story.order("o1", "13:00:00", revenue=100, currency="USD", order_id="A")
    story.order("o2", "13:00:01", revenue=100, currency="USD", order_id="A")
    story.order("o3", "12:00:00", day="2026-03-08", user=None, revenue="7", order_id="B")
    story.order("o4", "12:00:00", day="2026-03-08", user="u2", revenue=1)
    linear = {"name": "linear_open", "position": "linear", "touch": "open", "window_hours": 336}
    return story.marts(attribution_models=(*DEFAULT_MODELS, linear))


def credited(conversion: str, model: str) -> dict[str, tuple[Decimal, Decimal]]:
    """Return the credit and the value of each message of a conversion in corner G."""
    return {
        row["message_key"]: (row["credit"], row["value"])
        for row in attribution()["attributions"]
        if (row["conversion_id"], row["model"]) == (conversion, model)
    }


def test_corner_g_an_order_counts_once() -> None:
    """The second call of order A is no conversion."""
    assert [row["conversion_id"] for row in attribution()["conversions"]] == ["o1", "o3", "o4"]
    has(only(attribution()["conversions"], conversion_id="o3"), value=7, currency="XX" + "X", user_key=f"e:{ANN}")


@pytest.mark.parametrize(
    ("conversion", "model", "message"),
    [
        ("o1", "last_click", "m:Y"),
        ("o1", "first_click", "m:X"),
        ("o1", "last_open", "m:Z"),
        ("o1", "first_open", "m:Y"),
        ("o3", "last_click", "m:Y"),
        ("o3", "first_click", "m:X"),
    ],
)
def test_corner_g_the_first_or_last_touch_gets_the_whole_credit(conversion: str, model: str, message: str) -> None:
    """A click 168 hours before the order is in the window of 168 hours; one of 73 hours is not in that of 72."""
    whole = {"o1": Decimal(100), "o3": Decimal(7)}[conversion]
    assert credited(conversion, model) == {message: (1, whole)}


def test_corner_g_old_touches_and_other_users_get_no_credit() -> None:
    """The opens are too old for o3, and o4 is of another user with the same address."""
    found = {(row["conversion_id"], row["model"]) for row in attribution()["attributions"]}
    assert not found & {("o3", "last_open"), ("o3", "first_open")}
    assert not any(conversion == "o4" for conversion, _ in found)


def test_corner_g_a_linear_model_divides_the_credit_equally() -> None:
    """The last message takes what rounding leaves."""
    third, last = (Decimal("0.333333"), Decimal("33.333333")), (Decimal("0.333334"), Decimal("33.333334"))
    assert credited("o1", "linear_open") == {"m:X": third, "m:Y": third, "m:Z": last}


def test_corner_h_a_day_is_a_day_of_the_time_zone() -> None:
    """A day is one of the time zone."""
    story = Story()
    story.add("Email Delivered", "03:00:00", campaignId=1, messageId="x")
    marts = story.marts(marts_time_zone="America/New_York")
    for mart in ("events", "messages", "campaign_daily", "channel_daily", "deliverability_daily"):
        assert only(marts[mart])["day"] == date(2026, 3, 3)


def test_a_conversion_at_the_second_of_the_click_is_attributed() -> None:
    """Both ends of the window belong to it."""
    story = Story()
    story.add("SMS Clicked", "10:00:00", campaignId=1, messageId="x")
    story.order("o", "10:00:00")
    has(only(story.marts()["attributions"], model="last_click"), seconds_to_convert=0, value=None, credit=1)


def test_a_conversion_needs_an_id_and_a_time() -> None:
    """Of rows with one id the first counts, and of an order the earliest; a late earlier row takes its place."""
    story = Story()
    story.order("b", "10:00:02", order_id=" A ", revenue="n/a", currency=" eur ")
    story.order("c", "10:00:01", order_id="A", revenue="12.50")
    story.order("c", "10:00:01", order_id=None, revenue=1)
    story.order("d", "10:00:00", order_id="D", revenue="NaN", currency="eur")
    story.order(" ", "10:00:00", order_id="E")
    story.orders.append({"id": "e", "timestamp": None, "anonymous_id": "browser"})
    marts = story.marts()
    assert {row["conversion_id"]: (row["order_id"], row["value"], row["currency"]) for row in marts["conversions"]} == {
        "c": ("A", Decimal("12.50"), Variables().default_currency),
        "d": ("D", None, "EUR"),
    }


def test_conversions_may_be_rows_of_tracks() -> None:
    """Only rows of the event count, by the time that the variable names; a table that is not there has none."""
    story = Story()
    wanted = {"name": "signup", "schema": "app", "table": "tracks", "event": "signed_up", "time": "sent_at"}
    rows = [
        {"id": "a", "event": "signed_up", "sent_at": "2026-03-04T10:00:00Z", "anonymous_id": "browser"},
        {"id": "b", "event": "signed_in", "sent_at": "2026-03-04T10:00:00Z"},
    ]
    absent = {"name": "order", "schema": "shop", "table": "orders"}
    variables = Variables(conversion_events=(wanted, absent))
    [row] = expected_marts(serve(story.calls), {("app", "tracks"): rows}, variables)["conversions"]
    has(row, conversion_id="a", occurred_at=at("10:00:00"), user_key="a:browser", value=None)


def test_a_variable_decides_whether_transactional_messages_get_credit() -> None:
    """The channel of the message decides, wherever it stands."""
    story = Story()
    story.add("Email Delivered", "10:00:00", campaignId=1, messageId="x", channelId=30)
    story.add("Email Link Clicked", "10:01:00", campaignId=1, messageId="x")
    story.order("o", "11:00:00")
    for attributed, rows in [(False, 0), (True, 1)]:
        marts = story.marts(transactional_channel_ids=(30,), attribute_transactional=attributed)
        assert only(marts["campaign_performance"])["is_transactional"]
        assert len([row for row in marts["attributions"] if row["model"] == "last_click"]) == rows


def test_aggregates_show_the_latest_name() -> None:
    """A message keeps the name of its send."""
    story = Story()
    story.add(
        "Email Delivered", "10:00:00", campaignId=1, messageId="x", campaignName="Old", templateName="T", templateId=2
    )
    story.add("Email Delivered", "11:00:00", campaignId=1, messageId="y", campaignName=" New ")
    story.add("Email Opened", "12:00:00", campaignId=1, messageId="x", campaignName=" ", workflowId=3, workflowName="J")
    marts = story.marts()
    assert [row["campaign_name"] for row in marts["messages"]] == ["Old", "New"]
    has(only(marts["campaign_performance"]), campaign_name="New", workflow_id=3, workflow_name="J")
    assert {row["template_id"]: row["template_name"] for row in marts["template_performance"]} == {2: "T", 0: None}
    has(only(marts["workflow_performance"]), workflow_name="J", campaigns=1, messages=1)


@pytest.mark.parametrize(
    ("event", "rates"),
    [
        ("Email", {"click_rate": 1, "open_rate": 0, "bounce_rate": 0, "complaint_rate": 0, "unsubscribe_rate": 0}),
        ("SMS", {"click_rate": 1, "open_rate": None, "bounce_rate": 0, "complaint_rate": None, "unsubscribe_rate": 0}),
        ("Web Push", {"click_rate": 1, "open_rate": None, "bounce_rate": None, "click_to_open_rate": None}),
        ("In App", {"click_rate": None, "delivery_rate": 0, "open_rate": None, "bounce_rate": None}),
    ],
)
def test_a_channel_has_only_its_rates(event: str, rates: dict[str, Decimal | None]) -> None:
    """The denominator of clicks differs too: an in-app message needs an open."""
    story = Story()
    sent = "In App Sent" if event == "In App" else f"{event} Delivered"
    clicked = "Email Link Clicked" if event == "Email" else f"{event} Clicked"
    story.add(sent, "10:00:00", campaignId=1, messageId="x")
    story.add(clicked, "10:01:00", campaignId=1, messageId="x")
    has(only(story.marts()["campaign_performance"]), **rates)


def test_an_unknown_recipient_counts_once_for_each_message() -> None:
    """A click without a message and a user is known by its own id."""
    story = Story()
    for message in ("x", "y", None, None):
        story.add("SMS Clicked", "10:00:00", user=None, messageId=message, clickedUrl="https://a.example")
    for call in story.calls:
        call["context"], call["anonymousId"] = {}, " "
    marts = story.marts()
    has(only(marts["link_performance"]), campaign_id=0, clicks=4, unique_clicks=4, share_of_human_clicks=1)
    assert {row["recipient_key"] for row in marts["campaign_recipients"]} == {"m:x", "m:y"}
    has(only(marts["channel_daily"]), clicks=4, engaged_users=0)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("EmailLink", "recipient"),
        ("SMS", "recipient"),
        ("HardBounce", "bounce"),
        ("complaint", "complaint"),
        ("ListAPI", "system"),
        (None, "system"),
    ],
)
def test_an_unsubscribe_has_the_class_of_its_source(source: str | None, kind: str) -> None:
    """Case does not count."""
    story = Story()
    story.add("Unsubscribed", "10:00:00", unsubSource=source)
    assert only(story.marts()["events"])["unsubscribe_class"] == kind


def test_iterables_time_takes_precedence_over_the_time_of_the_envelope() -> None:
    """The time of the envelope counts only where Iterable's is no time."""
    story = Story()
    for created in ("2026-03-04 09:00:00 +00:00", "2026-03-04T09:00:00.134105.000Z", None):
        story.add("Email Delivered", "10:00:00", messageId="x", createdAt=created)
    assert [row["occurred_at"] for row in story.marts()["events"]] == [at("09:00:00"), at("10:00:00"), at("10:00:00")]


def test_the_attributes_of_a_message_come_from_its_send() -> None:
    """An earlier event of another type only fills gaps."""
    story = Story()
    story.add("Email Opened", "09:00:00", messageId="x", campaignId=1, templateId=4)
    story.add("Email Delivered", "10:00:00", messageId="x", campaignId=2)
    has(only(story.marts()["messages"]), campaign_id=2, template_id=4, first_event_at=at("09:00:00"))


def test_clicks_of_an_sms_are_divided_by_messages() -> None:
    """One recipient of two messages who clicks is a rate of a half, and of an email a rate of one."""
    story = Story()
    for message in ("x", "y"):
        for channel, click in (("SMS", "SMS Clicked"), ("Email", "Email Link Clicked")):
            story.add(f"{channel} Delivered", "10:00:00", campaignId=1, messageId=f"{channel}{message}")
            story.add(click, "10:01:00", campaignId=1, messageId=f"{channel}{message}")
    rates = {row["channel"]: row["click_rate"] for row in story.marts()["campaign_performance"]}
    assert rates == {"sms": Decimal("0.5"), "email": 1}


def test_a_recipient_has_the_latest_address() -> None:
    """The last message with an address decides."""
    story = Story()
    for clock, address in (("10:00:00", "old@example.com"), ("11:00:00", "new@example.com"), ("12:00:00", None)):
        story.add("Email Delivered", clock, campaignId=1, messageId=clock, email=address)
    story.calls[2]["context"] = {}
    has(only(story.marts()["campaign_recipients"]), email="new@example.com", user_id="u1", messages=3)


def test_a_first_touch_is_the_first_of_its_message() -> None:
    """A last touch is the last."""
    story = Story()
    for clock in ("10:00:00", "10:30:00"):
        story.add("Email Link Clicked", clock, campaignId=1, messageId="x")
    story.order("o", "11:00:00")
    marts = story.marts()
    touched = {row["model"]: row["touched_at"] for row in marts["attributions"]}
    first, last = at("10:00:00"), at("10:30:00")
    assert touched == {"first_click": first, "first_open": first, "last_click": last, "last_open": last}


def test_a_bounced_send_is_no_touch() -> None:
    """A send of another message is."""
    story = Story()
    for message in ("x", "y"):
        story.add("Email Delivered", "10:00:00", campaignId=1, messageId=message)
    story.add("Email Bounced", "10:00:05", campaignId=1, messageId="x")
    story.order("o", "11:00:00")
    model = {"name": "linear", "position": "linear", "touch": "send", "window_hours": 1}
    marts = story.marts(attribution_models=(model,), primary_attribution_model="linear")
    has(only(marts["attributions"]), message_key="m:y", touch_type="send", credit=1)


def test_a_funnel_of_in_app_messages_needs_no_receipt() -> None:
    """Receipts are often not to be had."""
    story = Story()
    story.add("In App Sent", "10:00:00", campaignId=1, messageId="x")
    story.add("In App Opened", "10:01:00", campaignId=1, messageId="x")
    funnel = sorted(story.marts()["funnel"], key=lambda row: row["step"])
    assert [row["recipients"] for row in funnel] == [1, 1, 1, 0, 0]
    assert [row["share_of_previous"] for row in funnel] == [1, 1, 1, 0, None]


def test_a_linear_model_credits_three_clicks_of_one_message_once() -> None:
    """A linear model gives the message all of the credit, by its last click."""
    story = Story()
    for clock in ("10:00:00", "10:00:01", "10:00:02"):
        story.add("Email Link Clicked", clock, campaignId=1, messageId="x")
    story.order("o", "11:00:00", revenue=9)
    linear = {"name": "linear", "position": "linear", "touch": "click", "window_hours": 1}
    [row] = story.marts(attribution_models=(linear,), primary_attribution_model="linear")["attributions"]
    has(row, credit=1, value=9, touched_at=at("10:00:02"))


def test_a_bounced_message_can_be_opened() -> None:
    """The open counts, and nothing is delivered."""
    story = Story()
    story.add("Email Delivered", "10:00:00", campaignId=1, messageId="x")
    story.add("Email Bounced", "10:00:01", campaignId=1, messageId="x", recipientState="SoftBounceGeneral")
    story.add("Email Opened", "10:00:02", campaignId=1, messageId="x")
    has(only(story.marts()["messages"]), delivered=0, opens=1)


def test_a_skip_makes_no_message() -> None:
    """A skip with the id of a message that was sent too is a skip beside the message."""
    story = Story()
    story.add("Email Delivered", "10:00:00", campaignId=1, messageId="x")
    story.add("Email Send Skip", "10:00:01", campaignId=1, messageId="x", reason="DuplicateMarketingMessage")
    story.add("Email Send Skip", "10:00:02", campaignId=2, campaignName="Two", reason="DuplicateMarketingMessage")
    marts = story.marts()
    has(only(marts["messages"]), sends=1)
    has(only(marts["campaign_performance"], campaign_id=1), messages=1, skips=1)
    skipped = only(marts["campaign_performance"], campaign_id=2)
    has(
        skipped,
        messages=0,
        skips=1,
        campaign_name="Two",
        is_transactional=False,
        first_sent_at=None,
        delivery_rate=None,
    )


@pytest.mark.parametrize(("campaign", "read"), [("7", 7), (7.0, 7), (7, 7), (7.5, 0), ("n/a", 0), (0, 0)])
def test_a_campaign_is_a_whole_number(campaign: object, read: int) -> None:
    """Every other value means none."""
    story = Story()
    story.add("Email Delivered", "10:00:00", campaignId=campaign, messageId="x")
    assert only(story.marts()["campaign_performance"])["campaign_id"] == read


def test_events_after_the_day_of_the_report_are_in_no_window() -> None:
    """The user is active all the same, and the times are those of all events."""
    story = Story()
    story.add("Email Delivered", "10:00:00", campaignId=1, messageId="x")
    story.add("Email Opened", "10:00:01", campaignId=1, messageId="x")
    row = only(story.marts(as_of_date=date(2026, 3, 3))["user_engagement"])
    has(row, sends_7d=0, opens_90d=0, engagement_level="active", last_open_at=at("10:00:01"))


@pytest.mark.parametrize(
    ("today", "level"),
    [
        ("2026-04-03", "active"),
        ("2026-04-04", "lapsing"),
        ("2026-06-02", "lapsing"),
        ("2026-06-03", "dormant"),
    ],
)
def test_engagement_decreases_after_30_and_90_days_without_activity(today: str, level: str) -> None:
    """The limits are 30 and 90 days after the last human open or click."""
    story = Story()
    story.add("Email Opened", "10:00:00", campaignId=1, messageId="x")
    story.add("Email Opened", "10:00:00", day="2026-05-30", campaignId=1, messageId="y", proxySource=" apple ")
    assert only(story.marts(as_of_date=date.fromisoformat(today))["user_engagement"])["engagement_level"] == level


@pytest.mark.parametrize(("today", "level"), [("2026-04-03", "new"), ("2026-04-04", "unengaged")])
def test_a_user_who_never_engaged_is_new_or_unengaged(today: str, level: str) -> None:
    """The first send decides."""
    story = Story()
    story.add("Email Delivered", "10:00:00", campaignId=1, messageId="x")
    story.add("Email Delivered", "10:00:00", day="2026-04-01", campaignId=1, messageId="y")
    row = only(story.marts(as_of_date=date.fromisoformat(today))["user_engagement"])
    has(
        row,
        engagement_level=level,
        sends_7d=1,
        sends_30d=1 + (level == "new") * 0,
        email_last_sent_at=row["last_sent_at"],
    )


def test_an_address_ignores_case_and_placeholders() -> None:
    """The first usable address counts."""
    story = Story()
    story.add("Email Delivered", "10:00:00", user=None, campaignId=1, messageId="x", email="Ann@PLACEHOLDER.email")
    story.add("Email Delivered", "10:00:00", user=None, campaignId=1, messageId="y", email="  Ben@Example.COM ")
    assert [row["email"] for row in story.marts()["events"]] == [ANN, "ben@example.com"]


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("HTTPS://Shop.Example.com/Path/?a=1", "https://shop.example.com/Path/"),
        ("https://shop.example.com#Top", "https://shop.example.com"),
        ("App+x://Host", "app+x://host"),
        ("Action/One", "Action/One"),
        ("?only=query", None),
        (None, None),
    ],
)
def test_a_link_is_a_url_without_its_query(url: str | None, link: str | None) -> None:
    """Scheme and host are in lower case."""
    assert link_of(url) == link


@pytest.mark.parametrize(
    ("written", "ids"),
    [
        ("[1, 2, 2]", {1, 2}),
        ('["3", 4.0, 0, null, true, [5], "x", 6.5]', {3, 4}),
        ("7", {7}),
        ('"7"', set()),
        ("{}", set()),
        ("1, 2", set()),
        (None, set()),
    ],
)
def test_the_target_ids_of_a_text_are_its_whole_numbers(written: str | None, ids: set[int]) -> None:
    """All else is passed over."""
    assert ids_in(written) == ids


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-03-04 10:00:00 +00:00", at("10:00:00")),
        ("2026-03-04 10:00:00 +0000", at("10:00:00")),
        ("2026-03-04T05:00:00.500000-05:00", at("10:00:00.500000")),
        (" 2026-03-04T10:00:00Z ", at("10:00:00")),
        ("2026-03-04 10:00", at("10:00:00")),
        ("2026-03-04T10:00:00.134105.000Z", None),
        ("2026-02-30 10:00:00", None),
        ("04.03.2026 10:00", None),
        ("now", None),
    ],
)
def test_a_time_must_have_the_iso_format(written: str, read: datetime | None) -> None:
    """A text without an offset is UTC."""
    assert time_of(written) == read


def test_a_number_may_be_a_text() -> None:
    """A number that is not finite is none."""
    read = {written: number(written) for written in ("12.50", "1e2", "NaN", "infinity", "0x10", "1_000", "n/a")}
    assert read == {**dict.fromkeys(read), "12.50": Decimal("12.50"), "1e2": Decimal(100)}


def test_a_quotient_rounds_half_away_from_zero() -> None:
    """It has six decimals, and is NULL without a denominator."""
    assert quotient(1, 3) == Decimal("0.333333")
    assert quotient(5, 10_000_000) == Decimal("0.000001")
    assert quotient(Decimal(-5), 10_000_000) == Decimal("-0.000001")
    assert quotient(1, 0) is None


def test_a_difference_is_named_by_its_key_and_column() -> None:
    """Missing, unexpected and repeated rows are named too."""
    story = Story()
    for campaign in (1, 2, 3):
        story.add("Email Delivered", "10:00:00", campaignId=campaign, messageId=f"m{campaign}")
    expected = story.marts()["campaign_performance"]
    assert find_differences("campaign_performance", expected, expected) == []
    first, second, _ = (dict(row) for row in expected)
    actual = [first | {"sends": 2}, second, second, second | {"campaign_id": 4}]
    assert find_differences("campaign_performance", expected, actual, shown=3) == [
        "campaign_performance (channel email, campaign_id 1): sends is 2, not 1",
        "campaign_performance (channel email, campaign_id 2): 2 rows with one key",
        "campaign_performance (channel email, campaign_id 3): the row is missing",
        "campaign_performance has 1 more differences",
    ]
    with pytest.raises(AssertionError, match="sends is 2, not 1"):
        assert_marts_equal({"campaign_performance": expected}, {"campaign_performance": actual})
    with pytest.raises(AssertionError, match="messages is missing"):
        assert_marts_equal({"messages": []}, {})


# The laws, on nasty events


@cache
def nasty() -> NastyEvents:
    """Return nasty events that tests share; no test changes them."""
    return generate_nasty_events(2_500, seed=3)


LAWS = Variables(
    marts_time_zone="Asia/Kathmandu",
    conversion_events=(CONVERSION,),
    transactional_channel_ids=(3,),
    attribution_models=(
        *DEFAULT_MODELS,
        {"name": "linear", "position": "linear", "touch": "send", "window_hours": 500},
    ),
    as_of_date=date(2026, 3, 20),
)


@cache
def nasty_marts() -> Mapping[str, list[Row]]:
    """Return the expected marts of the nasty events."""
    orders = serve(nasty().app)["order_completed"]
    return expected_marts(serve(nasty().iterable), {ORDERS: orders}, LAWS)


@pytest.mark.parametrize("mart", KEYS)
def test_nasty_events_give_every_mart_rows_with_a_key_of_their_own(mart: str) -> None:
    """No value of a key is NULL."""
    keys = [tuple(row[name] for name in KEYS[mart]) for row in nasty_marts()[mart]]
    assert keys
    assert len(set(keys)) == len(keys)
    assert not any(None in key for key in keys)


def test_the_order_of_the_rows_of_a_table_does_not_matter() -> None:
    """Only the order of landing decides which call with an id counts, and the tables have decided that."""
    tables, chance = serve(nasty().iterable), Random(1)
    for rows in tables.values():
        chance.shuffle(rows)
    orders = serve(nasty().app)["order_completed"]
    chance.shuffle(orders)
    assert_marts_equal(nasty_marts(), expected_marts(tables, {ORDERS: orders}, LAWS))


def test_every_row_of_the_tables_is_an_event() -> None:
    """The events by day are the same events."""
    tables = serve(nasty().iterable)
    number_of_rows = sum(len(tables[name]) for name in COLLECTIONS)
    assert len(nasty_marts()["events"]) == number_of_rows
    assert sum(row["events"] for row in nasty_marts()["channel_daily"]) == number_of_rows


@pytest.mark.parametrize("name", ["messages", *SUMS])
def test_counts_have_one_sum_in_all_marts(name: str) -> None:
    """Messages are divided among groups, and none is lost or counted twice."""
    sums = {
        mart: sum(row[name] for row in nasty_marts()[mart])
        for mart in ("campaign_performance", "template_performance", "campaign_daily", "campaign_recipients")
    }
    messages = nasty_marts()["messages"]
    whole = len(messages) if name == "messages" else sum(row[name] for row in messages)
    assert set(sums.values()) == {whole}
    assert whole > 0


def test_credits_sum_to_one_and_attributed_values_to_the_conversions_value() -> None:
    """A conversion has a whole credit in a model, or none."""
    values = {row["conversion_id"]: row["value"] for row in nasty_marts()["conversions"]}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in nasty_marts()["attributions"]:
        groups[row["model"], row["conversion_id"]].append(row)
    for (_, conversion), rows in groups.items():
        assert sum(row["credit"] for row in rows) == 1
        if values[conversion] is not None:
            assert sum(row["value"] for row in rows) == values[conversion]
    assert any(len(rows) > 2 for rows in groups.values())


def test_a_funnel_never_grows() -> None:
    """Each step has at most the recipients of the step before."""
    funnels: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row in sorted(nasty_marts()["funnel"], key=lambda row: row["step"]):
        funnels[row["channel"], row["campaign_id"]].append(row["recipients"])
    assert all(len(steps) == 5 and steps == sorted(steps, reverse=True) for steps in funnels.values())
    assert any(steps[-1] for steps in funnels.values())


def test_distinct_recipients_are_at_most_the_messages() -> None:
    """Every count of recipients is bounded."""
    for row in nasty_marts()["campaign_performance"]:
        uniques = [value for name, value in row.items() if name.startswith("unique_")]
        assert max(uniques) <= row["messages"]


def test_the_periods_of_a_subscription_follow_each_other() -> None:
    """A period ends when the next one begins, in the other state."""
    targets: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in nasty_marts()["subscription_history"]:
        targets[row["user_key"], row["target_type"], row["target_id"]].append(row)
    for periods in targets.values():
        periods.sort(key=lambda row: row["valid_from"])
        assert [row["valid_to"] for row in periods] == [*(row["valid_from"] for row in periods[1:]), None]
        assert all(a["state"] != b["state"] for a, b in pairwise(periods))
    assert max(map(len, targets.values())) > 2
