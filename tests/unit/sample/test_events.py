"""The sample events: the same for the same seed, complete, and with believable numbers."""

import json
import re
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from functools import cache

import pytest

from loader.events.model import Event
from loader.events.naming import table_name
from loader.events.segment import parse_lines
from loader.sample.calls import Call
from loader.sample.campaigns import BLASTS, CART_STEPS, READY_SMS, SHIPPED_EMAIL, WELCOME_STEPS, Campaign
from loader.sample.events import DEFAULT_RECIPIENTS, WEEKS, SampleEvents, generate_sample_events, last_sunday
from tests.support.folders import ROOT
from tests.support.served_tables import COLLECTIONS

LAST_DAY = date(2026, 5, 3)
SENDS = {"Email Delivered", "Push Delivered", "SMS Delivered", "In App Sent", "Web Push Delivered"}
LESSON, OFFER, WELCOME = 4310029, 4310044, 4288907


@cache
def sample(recipients: int = DEFAULT_RECIPIENTS) -> SampleEvents:
    """Return sample events that tests share; no test changes them."""
    return generate_sample_events(LAST_DAY, recipients)


def bytes_of(events: SampleEvents) -> str:
    """Return the text of all calls."""
    return json.dumps([events.iterable, events.app])


def is_machine(call: Call) -> bool:
    """Return whether a machine opened or clicked."""
    properties = call["properties"]
    return bool(properties.get("isBot")) or properties.get("proxySource") == "Apple"


def messages_with(event: str, campaign: int | None = None, *, human: bool = False) -> set[str]:
    """Return the ids of the messages that have an event; with `human`, an event of a person."""
    return {
        call["properties"]["messageId"]
        for call in sample().iterable
        if call["event"] == event
        and campaign in {None, call["properties"].get("campaignId")}
        and not (human and is_machine(call))
    }


def marketing_emails() -> set[str]:
    """Return the ids of the emails that recipients did not ask for by an order."""
    return messages_with("Email Delivered") - messages_with("Email Delivered", SHIPPED_EMAIL.id)


def test_the_same_seed_and_day_give_the_same_bytes() -> None:
    """A third generation with another seed differs."""
    first, second = (bytes_of(generate_sample_events(LAST_DAY, 50, seed=7)) for _ in range(2))
    assert first == second
    assert bytes_of(generate_sample_events(LAST_DAY, 50, seed=8)) != first


def test_samples_that_end_on_two_sundays_differ_in_their_dates_alone() -> None:
    """So the demo shows the same numbers in every week."""
    week = timedelta(days=7)
    earlier, later = (generate_sample_events(LAST_DAY + shift, 50) for shift in (timedelta(), week))
    assert [call["messageId"] for call in later.iterable] == [call["messageId"] for call in earlier.iterable]
    moved = [
        datetime.fromisoformat(there["timestamp"]) - datetime.fromisoformat(here["timestamp"])
        for here, there in zip(earlier.app, later.app, strict=True)
    ]
    assert set(moved) == {week}


@pytest.mark.parametrize(
    ("today", "sunday"),
    [(date(2026, 5, 4), date(2026, 5, 3)), (date(2026, 5, 9), date(2026, 5, 3)), (date(2026, 5, 3), date(2026, 4, 26))],
)
def test_the_last_sunday_is_before_today(today: date, sunday: date) -> None:
    """On a Sunday, it is the Sunday before."""
    assert last_sunday(today) == sunday


@pytest.mark.parametrize("size", [(), (300,)], ids=["default", "small"])
def test_every_collection_occurs(size: tuple[int, ...]) -> None:
    """A small sample has the rare collections too."""
    assert {table_name(call["event"]) for call in sample(*size).iterable} == set(COLLECTIONS)


def test_the_default_sample_has_15000_to_25000_events() -> None:
    """Its events are 15,000 to 25,000."""
    assert 15_000 <= len(sample().iterable) + len(sample().app) <= 25_000


def test_the_readme_shows_the_numbers_of_the_demo() -> None:
    """They are the same in each week."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^    ((?:iterable|app)\.\w+) +([\d,]+)$", readme, re.MULTILINE))
    numbers = Counter(f"iterable.{table_name(call['event'])}" for call in sample().iterable)
    numbers |= {"iterable.tracks": numbers.total()}
    numbers |= dict.fromkeys(["app.order_completed", "app.tracks"], len(sample().app))
    assert shown == {table: f"{numbers[table]:,}" for table in shown}
    assert len(shown) == 5


def test_the_number_of_recipients_decides_the_number_of_events() -> None:
    """Twice as many recipients have about twice as many events."""
    assert 1.8 <= len(sample(600).iterable) / len(sample(300).iterable) <= 2.2


def test_every_call_has_an_id_of_its_own() -> None:
    """The calls of both senders count."""
    ids = [call["messageId"] for call in [*sample().iterable, *sample().app]]
    assert len(set(ids)) == len(ids)


def test_only_push_messages_to_two_devices_have_two_sends() -> None:
    """Every other message has one send."""
    sends = Counter(
        (call["event"], call["properties"]["messageId"]) for call in sample().iterable if call["event"] in SENDS
    )
    assert {event for (event, _), number in sends.items() if number > 1} == {"Push Delivered"}
    assert max(sends.values()) == 2


def test_all_events_lie_in_the_nine_weeks_in_their_order() -> None:
    """The first day is a Monday if the last is a Sunday."""
    for calls in (sample().iterable, sample().app):
        times = [datetime.fromisoformat(call["timestamp"]) for call in calls]
        assert times == sorted(times)
        assert times[-1].date() <= LAST_DAY
        assert times[0] >= datetime(2026, 5, 4, tzinfo=UTC) - timedelta(weeks=WEEKS)


def test_every_call_is_accepted() -> None:
    """A file of the calls has no line for the quarantine."""
    lines = "".join(f"{json.dumps(call)}\n" for call in [*sample().iterable, *sample().app])
    messages = parse_lines(lines.encode(), 0)
    assert len(messages) == len(sample().iterable) + len(sample().app)
    assert all(isinstance(message, Event) for message in messages)


def test_a_call_has_the_form_of_segment() -> None:
    """The time that Iterable writes is that of the envelope, and the person is known by an id or the address."""
    for call in sample().iterable:
        properties = call["properties"]
        assert call["type"] == "track"
        assert properties["createdAt"] == f"{call['timestamp'][:19].replace('T', ' ')} +00:00"
        assert call["context"]["traits"] == {"email": properties["email"]}
        assert call.get("anonymousId", properties["email"]) == properties["email"]
        assert ("userId" in call) != ("anonymousId" in call)


def test_ten_campaigns_and_two_journeys_send_messages() -> None:
    """Each has a name and the channel of its collection."""
    journeys = [*WELCOME_STEPS, *CART_STEPS]
    sent = {
        (call["properties"]["campaignId"], call["properties"]["campaignName"])
        for call in sample().iterable
        if call["event"] in SENDS
    }
    assert sent == {(each.id, each.name) for each in [*BLASTS, SHIPPED_EMAIL, READY_SMS, *journeys]}
    assert len(BLASTS) == 10
    assert len({each.workflow for each in journeys}) == 2


def test_each_campaign_is_sent_on_one_day() -> None:
    """Most of the weeks have one, on a Tuesday."""
    days = defaultdict(set)
    for call in sample().iterable:
        if call["event"] in SENDS:
            days[call["properties"]["campaignId"]].add(call["timestamp"][:10])
    sent = [days[campaign.id] for campaign in BLASTS]
    assert {len(each) for each in sent} == {1}
    tuesdays = {str(date(2026, 3, 3) + timedelta(weeks=week)) for week in range(WEEKS)}
    assert len(tuesdays & set.union(*sent)) == WEEKS - 1


def test_the_experiment_has_two_templates_of_which_one_wins() -> None:
    """Recipients of the second template click more."""
    clicks: Counter[str] = Counter()
    sends: Counter[str] = Counter()
    for call in sample().iterable:
        properties = call["properties"]
        if properties.get("experimentId") and not is_machine(call):
            sends[properties["templateName"]] += call["event"] == "Email Delivered"
            clicks[properties["templateName"]] += call["event"] == "Email Link Clicked"
    first, second = sorted(sends)
    assert min(sends.values()) > 600
    assert clicks[second] > 1.2 * clicks[first]


@pytest.mark.parametrize("campaign", [each for each in BLASTS if each.channel == "email"], ids=lambda each: each.name)
def test_the_rates_of_an_email_campaign_are_believable(campaign: Campaign) -> None:
    """Delivery is 97 to 99 %, human opens 20 to 40 %, human clicks 1 to 5 %, unsubscribes 0.1 to 0.5 %."""
    sent = messages_with("Email Delivered", campaign.id)
    delivered = sent - messages_with("Email Bounced", campaign.id)
    opened = messages_with("Email Opened", campaign.id, human=True) & delivered
    clicked = messages_with("Email Link Clicked", campaign.id, human=True) & delivered
    left = messages_with_unsubscribes() & sent
    assert 0.97 * len(sent) <= len(delivered) <= 0.99 * len(sent)
    assert 0.20 * len(delivered) <= len(opened) <= 0.40 * len(delivered)
    assert 0.01 * len(delivered) <= len(clicked) <= 0.05 * len(delivered)
    assert 0.001 * len(delivered) <= len(left) <= 0.005 * len(delivered)


def test_the_rates_of_push_sms_and_in_app_messages_are_believable() -> None:
    """Pushes are tapped and text messages clicked by some, and in-app messages opened by many."""
    shares = {
        channel: share(sent, reaction)
        for channel, sent, reaction in [
            ("push", "Push Delivered", "Push Opened"),
            ("sms", "SMS Delivered", "SMS Clicked"),
            ("web push", "Web Push Delivered", "Web Push Clicked"),
            ("in-app", "In App Sent", "In App Opened"),
        ]
    }
    limits = {"push": (0.03, 0.10), "sms": (0.04, 0.12), "web push": (0.02, 0.08), "in-app": (0.25, 0.5)}
    assert all(limits[channel][0] <= each <= limits[channel][1] for channel, each in shares.items()), shares


def share(sent: str, reaction: str, campaign: int | None = None) -> float:
    """Return the share of sent messages that have a human reaction."""
    messages = messages_with(sent, campaign)
    return len(messages_with(reaction, campaign, human=True) & messages) / len(messages)


def messages_with_unsubscribes() -> set[str]:
    """Return the ids of the messages after which a recipient unsubscribed."""
    return {
        call["properties"]["messageId"]
        for call in sample().iterable
        if call["event"] == "Unsubscribed" and "messageId" in call["properties"]
    }


def test_machines_open_more_than_a_fifth_of_the_emails() -> None:
    """Apple's proxy and scanners do; some scanners click as well."""
    machines = [call for call in sample().iterable if call["event"] == "Email Opened" and is_machine(call)]
    assert {call["properties"].get("proxySource") for call in machines} == {"Apple", None}
    opened = {call["properties"]["messageId"] for call in machines}
    assert len(opened) > 0.2 * len(marketing_emails())
    for clicked in ("Email Link Clicked", "SMS Clicked"):
        assert messages_with(clicked) - messages_with(clicked, human=True)


def test_the_welcome_journey_has_higher_rates_than_every_campaign() -> None:
    """New recipients open and click more."""
    campaigns = [each.id for each in BLASTS if each.channel == "email"]
    for event in ("Email Opened", "Email Link Clicked"):
        best = max(share("Email Delivered", event, campaign) for campaign in campaigns)
        assert share("Email Delivered", event, WELCOME) > 1.2 * best


def test_one_domain_blocks_emails_in_the_second_half() -> None:
    """Other domains never block, and it accepts its emails in the first half."""
    blocked = [
        call
        for call in sample().iterable
        if call["properties"].get("recipientState", "").startswith("MailBlock") and call["event"] == "Email Bounced"
    ]
    assert {call["properties"]["email"].split("@")[1] for call in blocked} == {"postbox.example"}
    assert min(call["timestamp"] for call in blocked) > "2026-04-02"
    assert len(blocked) > 20


def test_bounces_unsubscribes_and_subscribes_have_every_cause() -> None:
    """An email can bounce without a state."""
    found = {
        name: {call["properties"].get(name) for call in sample().iterable if call["event"] == event}
        for event, name in [
            ("Email Bounced", "recipientState"),
            ("Unsubscribed", "unsubSource"),
            ("Subscribed", "signupSource"),
        ]
    }
    assert {"HardBounce", "MailBlockGeneral", "SoftBounceGeneral", "DNSFailure", None} <= found["recipientState"]
    assert found["unsubSource"] == {
        *("API", "Complaint", "EmailLink", "HardBounce", "Import", "ListAPI", "SMS", "WebApp", "Workflow")
    }
    assert found["signupSource"] == {"API", "Import", "ListAPI", "UpdateSubscriptionsAPI", "WebForm"}


def test_a_person_gets_no_marketing_email_after_leaving() -> None:
    """An unsubscribe by link, hard bounce or complaint ends the emails of all campaigns but the transactional ones."""
    left: dict[str, str] = {}
    for call in sample().iterable:
        properties, person = call["properties"], call["properties"]["email"]
        if call["event"] == "Unsubscribed" and properties["unsubSource"] in {"EmailLink", "HardBounce", "Complaint"}:
            left.setdefault(person, call["timestamp"])
        if call["event"] == "Email Delivered" and properties["campaignId"] != SHIPPED_EMAIL.id:
            assert person not in left
    assert len(left) > 20


def test_orders_have_a_value_and_some_are_tracked_twice() -> None:
    """The two calls of an order agree, and differ in their ids."""
    orders: dict[str, list[Call]] = {}
    for call in sample().app:
        assert call["event"] == "Order Completed"
        assert call["properties"]["revenue"] > 0
        orders.setdefault(call["properties"]["order_id"], []).append(call)
    assert {call["properties"]["currency"] for call in sample().app} == {"USD", "EUR"}
    assert 0.05 * len(orders) <= sum(len(calls) == 2 for calls in orders.values()) <= 0.3 * len(orders)
    assert all(calls[0]["properties"] == calls[-1]["properties"] for calls in orders.values())


def test_orders_follow_clicks_so_that_campaigns_earn_differently() -> None:
    """Most orders come within three days of a click of the same person; an offer earns more than a lesson."""
    clicks: dict[str, list[tuple[datetime, int]]] = {}
    for call in sample().iterable:
        if call["event"].endswith("Clicked") or call["event"] == "Push Opened":
            moment, campaign = datetime.fromisoformat(call["timestamp"]), call["properties"]["campaignId"]
            clicks.setdefault(call["properties"]["email"], []).append((moment, campaign))
    revenue: Counter[int] = Counter()
    orders = {call["properties"]["order_id"]: call for call in reversed(sample().app)}
    after = 0
    for call in orders.values():
        ordered = datetime.fromisoformat(call["timestamp"])
        touched = [
            each
            for each in clicks.get(call["properties"]["email"], [])
            if timedelta() <= ordered - each[0] <= timedelta(days=3)
        ]
        if touched:
            after += 1
            revenue[max(touched)[1]] += call["properties"]["revenue"]
    assert after > 0.6 * len(orders)
    assert revenue[OFFER] > 3 * revenue[LESSON]
