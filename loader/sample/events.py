"""Generates sample events: nine weeks of a coffee roaster's messages and orders, for the demo, tests and benchmarks.

The events come as `track` calls in the form of Segment. The same seed, day and number of recipients give the same
calls.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from heapq import heappop, heappush
from itertools import count
from typing import Any

from loader.sample.calls import (
    NEVER,
    Call,
    Message,
    Person,
    created_at,
    iterable_call,
    order_call,
)
from loader.sample.campaigns import (
    BLASTS,
    CART_STEPS,
    DOMAINS,
    FIRST_NAMES,
    LAST_NAMES,
    NEWSLETTER_LIST,
    OFFER_LIST,
    PLACES,
    READY_SMS,
    SECONDS_OF_DAY,
    SECONDS_OF_HOUR,
    SHIPPED_EMAIL,
    TRANSACTIONAL_EMAIL,
    WELCOME_STEPS,
    Campaign,
)
from loader.sample.chance import Chance
from loader.sample.responses import Responses

WEEKS = 9
DEFAULT_RECIPIENTS = 1_500
DEFAULT_SEED = 20260304

_SIGNUP_SOURCES = ("WebForm", "API", "WebForm", "ListAPI", "UpdateSubscriptionsAPI", "Import")
_STAFF_SOURCES = ("API", "WebApp", "ListAPI", "Import", "Workflow")

_BROWSERS = (
    (
        "iPhone",
        "iOS",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    ),
    (
        "Mac",
        "Mac OS X",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4",
    ),
    ("Windows", "Windows", "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:123.0) Gecko/20100101 Firefox/123.0"),
)


@dataclass(frozen=True)
class SampleEvents:
    """The calls of the two senders, each in the order of their times.

    Attributes:
        iterable: The calls of Iterable.
        app: The calls of the roaster's own app: its orders. Some orders are tracked twice.
    """

    iterable: list[Call]
    app: list[Call]


def last_sunday(today: date) -> date:
    """Return the last Sunday before a day; samples that end on a Sunday differ only in their dates."""
    return today - timedelta(days=today.weekday() + 1)


def generate_sample_events(
    last_day: date, recipients: int = DEFAULT_RECIPIENTS, seed: int = DEFAULT_SEED
) -> SampleEvents:
    """Return the sample events of the nine weeks that end with a day.

    Args:
        last_day: The last day with events, in UTC.
        recipients: The number of recipients. A recipient has about 12 events.
        seed: Another seed gives other people, ids and times.
    """
    return _Roaster(last_day, recipients, seed).run()


class _Roaster:
    """The sender: it makes the calls of one day after the other."""

    def __init__(self, last_day: date, recipients: int, seed: int) -> None:
        self._chance = Chance(seed)
        self._end = int(datetime.combine(last_day, time(), UTC).timestamp()) + SECONDS_OF_DAY
        self._start = self._end - WEEKS * 7 * SECONDS_OF_DAY
        self._first_day = last_day - timedelta(days=WEEKS * 7 - 1)
        self._iterable: list[tuple[int, Call]] = []
        self._app: list[tuple[int, Call]] = []
        self._orders = 0
        self._numbers = count()
        # The time of sending, a number, the messages, the person, and the time at which the person entered.
        self._planned: list[tuple[int, int, tuple[Campaign, ...], Person, int]] = []
        self._responses = Responses(self._chance, self._track, self._order_after, (self._start + self._end) // 2)
        self._people = [self._make_person(number) for number in range(recipients)]

    def run(self) -> SampleEvents:
        """Return the calls of all days."""
        for day in range(WEEKS * 7):
            start = self._start + day * SECONDS_OF_DAY
            self._take_in_new_people(start)
            self._plan_blasts(day, start)
            self._plan_carts(start)
            self._take_organic_orders(start)
            self._send_planned(start + SECONDS_OF_DAY)
            if (self._first_day + timedelta(days=day)).weekday() == 0:
                self._unsubscribe_by_staff(start)
        return SampleEvents(self._sorted(self._iterable), self._sorted(self._app))

    def _sorted(self, timed: list[tuple[int, Call]]) -> list[Call]:
        """Return the calls in the order of their times, without the calls after the last day."""
        return [call for moment, call in sorted(timed, key=lambda pair: pair[0]) if moment < self._end]

    def _some_time(self) -> int:
        """Return a time in the nine weeks, not in their last days."""
        return self._start + self._chance.within(0, (WEEKS * 7 - 3) * SECONDS_OF_DAY)

    # People

    def _make_person(self, number: int) -> Person:
        first, last, chosen = self._chance.pick(FIRST_NAMES), self._chance.pick(LAST_NAMES), self._chance.share()
        for domain in DOMAINS:
            chosen -= domain.share
            if chosen < 0:
                break
        has_app = self._chance.happens(0.35)
        return Person(
            email=f"{first}.{last}.{number}@{domain.name}".lower(),
            user_id=None if self._chance.paced("without id", 0.08) else f"usr_{10_000 + number}",
            domain=domain,
            keenness=0.2 + 1.6 * self._chance.share(),
            proxy="Apple" if self._chance.happens(0.1) else domain.proxy,
            place=self._chance.pick(PLACES),
            browser=self._chance.pick(_BROWSERS),
            address=f"203.0.113.{number % 254 + 1}",
            devices=(2 if self._chance.happens(0.2) else 1) if has_app else 0,
            browser_token=f"c2bd7fa3c69:{self._chance.digits(16)}" if self._chance.happens(0.25) else None,
            phone=f"+1415555{number:04}" if self._chance.happens(0.3) else None,
            stale_from=self._some_time() if self._chance.paced("stale", 0.007) else NEVER,
            joined=self._some_time() if self._chance.happens(0.2) else 0,
        )

    def _take_in_new_people(self, start: int) -> None:
        for person in self._people:
            if start <= person.joined < start + SECONDS_OF_DAY:
                self._subscribe(person, person.joined, self._chance.turn("signup", _SIGNUP_SOURCES))
                self._plan(WELCOME_STEPS, person, person.joined + 20)

    def _subscribe(self, person: Person, moment: int, source: str) -> None:
        properties = {
            "signupSource": source,
            "emailListIds": [NEWSLETTER_LIST] if source == "Import" else [NEWSLETTER_LIST, OFFER_LIST],
            "channelIds": [],
            "messageTypeIds": [],
            "profileUpdatedAt": created_at(moment),
        }
        self._track("Subscribed", person, moment, properties)

    def _unsubscribe_by_staff(self, start: int) -> None:
        """Unsubscribe two people whom no message made leave; one of them returns a week later."""
        for returns in (False, True):
            person = self._chance.pick(self._people)
            moment = start + self._chance.within(9 * SECONDS_OF_HOUR, 17 * SECONDS_OF_HOUR)
            if person.joined > moment or person.email_until <= moment:
                continue
            source = self._chance.turn("staff", _STAFF_SOURCES)
            properties = {
                "unsubSource": source,
                "emailListIds": [OFFER_LIST],
                "emailListId": OFFER_LIST,
                "channelIds": [],
                "messageTypeIds": [],
            }
            self._track("Unsubscribed", person, moment, properties)
            if returns:
                self._subscribe(person, moment + 7 * SECONDS_OF_DAY, self._chance.turn("signup", _SIGNUP_SOURCES))

    # Sending

    def _plan_blasts(self, day: int, start: int) -> None:
        weekday = (self._first_day + timedelta(days=day)).weekday()
        for campaign in BLASTS:
            if (campaign.week, campaign.weekday) != (day // 7, weekday):
                continue
            for person in self._people:
                if person.joined < start and self._chance.happens(campaign.audience):
                    self._plan((campaign,), person, start + self._chance.within(0, 900))

    def _plan_carts(self, start: int) -> None:
        for person in self._people:
            if person.joined < start and self._chance.happens(0.004 * person.keenness):
                self._plan(CART_STEPS, person, start + self._chance.within(0, SECONDS_OF_DAY - 1))

    def _plan(self, steps: tuple[Campaign, ...], person: Person, entered: int) -> None:
        """Plan the first of some messages, of which each is sent some hours after the person entered."""
        due = entered + steps[0].hour * SECONDS_OF_HOUR
        heappush(self._planned, (due, next(self._numbers), steps, person, entered))

    def _send_planned(self, end: int) -> None:
        """Send the due messages in the order of time, so that each message knows the effects of earlier messages."""
        while self._planned and self._planned[0][0] < end:
            moment, _, steps, person, entered = heappop(self._planned)
            has_ordered = self._send(steps[0], person, moment)
            if steps[1:] and not has_ordered:
                self._plan(steps[1:], person, entered)

    def _send(self, campaign: Campaign, person: Person, moment: int) -> bool:
        """Send a message, if the person can get it, with all responses; return whether the person ordered."""
        channel = campaign.channel
        can_get = {
            "email": campaign.channel_id == TRANSACTIONAL_EMAIL or person.email_until > moment,
            "push": person.devices > 0 and person.push_until > moment,
            "sms": bool(person.phone) and person.sms_until > moment,
            "in_app": person.devices > 0 and person.push_until > moment,
            "web_push": bool(person.browser_token),
        }
        if not can_get[channel]:
            return False
        message = Message(campaign, self._chance.pick(campaign.templates), person, self._chance.digits(32), moment)
        return self._responses.follow(message)

    # Orders

    def _order_after(self, message: Message, clicked: int) -> bool:
        """Let the person order after a click, perhaps; return whether the person did."""
        if not self._chance.happens(message.campaign.order_rate):
            return False
        ordered = clicked + self._chance.within(240, 3 * SECONDS_OF_DAY, power=4)
        self._order(message.person, ordered, message.campaign.order_value)
        return True

    def _take_organic_orders(self, start: int) -> None:
        """Let people order whom no message brought."""
        for person in self._people:
            if person.joined < start and self._chance.happens(0.0006):
                self._order(person, start + self._chance.within(0, SECONDS_OF_DAY - 1), 28.0)

    def _order(self, person: Person, moment: int, mean: float) -> None:
        self._orders += 1
        order_id = f"A-{1000 + self._orders}"
        value = round(mean * (0.5 + self._chance.share()), 2)
        properties = {
            "order_id": order_id,
            "revenue": value,
            "currency": person.place[4],
            "email": person.email,
            "products": [{"sku": "ETH-250", "quantity": 1 + int(value // 20)}],
        }
        self._track_order(person, moment, properties, "analytics.js")
        if self._chance.paced("tracked twice", 0.15):
            self._track_order(person, moment + self._chance.within(1, 20), properties, "analytics-python")
        self._plan((SHIPPED_EMAIL,), person, moment)
        if self._chance.happens(0.3):
            self._plan((READY_SMS,), person, moment)

    def _track(
        self, event: str, person: Person, moment: int, properties: dict[str, Any], context: dict[str, Any] | None = None
    ) -> None:
        message_id = f"api-{self._chance.digits(27)}"
        call = iterable_call(
            event, person=person, moment=moment, properties=properties, context=context or {}, message_id=message_id
        )
        self._iterable.append((moment, call))

    def _track_order(self, person: Person, moment: int, properties: dict[str, Any], library: str) -> None:
        message_id = f"ajs-{self._chance.digits(32)}"
        anonymous_id = "" if person.user_id else self._chance.digits(32)
        call = order_call(
            person=person,
            moment=moment,
            properties=properties,
            library=library,
            message_id=message_id,
            anonymous_id=anonymous_id,
        )
        self._app.append((moment, call))
