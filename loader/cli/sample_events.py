"""Generates sample events: nine weeks of a coffee roaster's messages and orders, for the demo, tests and benchmarks.

The events come as `track` calls in the form of Segment. The same seed, day and number of recipients give the same
calls. Chance comes from `random()` and `getrandbits()` alone, whose numbers are equal in every version of Python.
Events that are rare come at a fixed pace instead, so that a small sample has them too.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

from loader.cli.sample_campaigns import (
    BLASTS,
    CART_STEPS,
    DOMAINS,
    FIRST_NAMES,
    LAST_NAMES,
    MARKETING_EMAIL,
    NEWSLETTER_LIST,
    OFFER_LIST,
    PLACES,
    READY_SMS,
    SECONDS_OF_DAY,
    SECONDS_OF_HOUR,
    SHIPPED_EMAIL,
    SMS,
    TRANSACTIONAL_EMAIL,
    WELCOME_STEPS,
    Campaign,
    MailDomain,
    Template,
)

Call = dict[str, Any]
Item = TypeVar("Item")

WEEKS = 9
DEFAULT_RECIPIENTS = 1_500
DEFAULT_SEED = 20260304

_SITE = "https://www.example.com/"
_NEVER = 2**40

_BLOCK_STATES = ("MailBlockSpamDetected", "MailBlockGeneral", "MailBlockKnownSpammer")
_SKIP_REASONS = ("DuplicateMarketingMessage", "FrequencyCapMessage")
_SIGNUP_SOURCES = ("WebForm", "API", "WebForm", "ListAPI", "UpdateSubscriptionsAPI", "Import")
_STAFF_SOURCES = ("API", "WebApp", "ListAPI", "Import", "Workflow")
_REPLIES = ("Yes please", "What are your hours?", "Thank you!")

_APPLE_MAIL = "Mozilla/5.0"
_SCANNER = "Mozilla/5.0 (compatible; LinkScanner/1.0)"
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


def _bounce(state: str, status: str, text: str) -> dict[str, str]:
    """Return the properties of a bounce."""
    return {"recipientState": state, "status": status, "bounceMessage": f"{status[0]}50 {status} {text}"}


# A bounce without a state is the last of the soft bounces: some servers give no reason.
_SOFT_BOUNCES: tuple[dict[str, str], ...] = (
    _bounce("SoftBounceMailboxFull", "4.2.2", "mailbox full"),
    _bounce("SoftBounceGeneral", "4.0.0", "try again later"),
    _bounce("DNSFailure", "4.4.4", "unable to route"),
    _bounce("SoftBounceTimeOut", "4.4.7", "timed out"),
    {},
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


@dataclass
class _Person:
    email: str
    user_id: str | None
    domain: MailDomain
    keenness: float
    proxy: str | None
    place: tuple[str, str, str, str, str]
    browser: tuple[str, str, str]
    address: str
    devices: int
    browser_token: str | None
    phone: str | None
    stale_from: int
    joined: int
    email_until: int = _NEVER
    sms_until: int = _NEVER
    push_until: int = _NEVER


@dataclass(frozen=True)
class _Message:
    campaign: Campaign
    template: Template
    person: _Person
    id: str
    sent: int

    @cached_property
    def properties(self) -> dict[str, Any]:
        """Return the properties of every event that names its campaign."""
        campaign = self.campaign
        named: dict[str, Any] = {
            "campaignId": campaign.id,
            "campaignName": campaign.name,
            "templateId": self.template.id,
            "templateName": self.template.name,
        }
        if campaign.workflow:
            named |= {"workflowId": campaign.workflow.id, "workflowName": campaign.workflow.name}
        if campaign.experiment_id:
            named["experimentId"] = campaign.experiment_id
        return named | {
            "channelId": campaign.channel_id,
            "messageTypeId": campaign.message_type_id,
            "messageId": self.id,
        }

    @cached_property
    def email_properties(self) -> dict[str, Any]:
        """Return the properties of the events of an email."""
        email_id = f"c{self.campaign.id}:t{self.template.id}:{self.person.email}"
        return self.properties | {"emailId": email_id, "emailSubject": self.campaign.text}

    @cached_property
    def in_app_properties(self) -> dict[str, Any]:
        """Return the properties of the events that a device sends about an in-app message."""
        return {
            "campaignId": self.campaign.id,
            "templateId": self.template.id,
            "messageId": self.id,
            "expiresAt": _created_at(self.sent + 14 * SECONDS_OF_DAY),
            "deviceInfo": {"deviceId": f"d-{self.person.user_id}", "platform": "iOS", "appPackageName": "com.example"},
            "messageContext": {"saveToInbox": False, "silentInbox": False, "location": "in-app"},
        }

    @cached_property
    def url(self) -> str:
        """Return the link of the message."""
        return f"{_SITE}{self.campaign.path}?utm_campaign={self.campaign.id}"


def last_sunday(today: date) -> date:
    """Return the last Sunday before a day; samples that end on a Sunday differ in nothing but their dates."""
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
        self._chance = random.Random(seed)  # noqa: S311 - sample events need no secrets
        self._end = int(datetime.combine(last_day, time(), UTC).timestamp()) + SECONDS_OF_DAY
        self._start = self._end - WEEKS * 7 * SECONDS_OF_DAY
        self._first_day = last_day - timedelta(days=WEEKS * 7 - 1)
        self._paces: dict[str, float] = {}
        self._turns: dict[str, int] = {}
        self._iterable: list[tuple[int, Call]] = []
        self._app: list[tuple[int, Call]] = []
        self._orders = 0
        self._numbers = count()
        # The time of sending, a number, the messages, the person, and the time at which the person entered.
        self._planned: list[tuple[int, int, tuple[Campaign, ...], _Person, int]] = []
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

    # Chance

    def _happens(self, rate: float) -> bool:
        return self._chance.random() < rate

    def _paced(self, name: str, rate: float) -> bool:
        """Return true at a fixed pace: the first time after half of `1 / rate` calls, then once in as many calls."""
        sum_of_rates = self._paces.get(name, 0.5) + rate
        self._paces[name] = sum_of_rates % 1
        return sum_of_rates >= 1

    def _pick(self, items: Sequence[Item]) -> Item:
        return items[int(self._chance.random() * len(items))]

    def _turn(self, name: str, items: Sequence[Item]) -> Item:
        """Return the items in turn."""
        self._turns[name] = turn = self._turns.get(name, -1) + 1
        return items[turn % len(items)]

    def _within(self, least: int, most: int, power: int = 1) -> int:
        """Return a number of seconds; a higher power makes short times more frequent."""
        return int(least + (most - least) * self._chance.random() ** power)

    def _some_time(self) -> int:
        """Return a time in the nine weeks, not in their last days."""
        return self._start + self._within(0, (WEEKS * 7 - 3) * SECONDS_OF_DAY)

    # People

    def _make_person(self, number: int) -> _Person:
        first, last, chosen = self._pick(FIRST_NAMES), self._pick(LAST_NAMES), self._chance.random()
        for domain in DOMAINS:
            chosen -= domain.share
            if chosen < 0:
                break
        has_app = self._happens(0.35)
        return _Person(
            email=f"{first}.{last}.{number}@{domain.name}".lower(),
            user_id=None if self._paced("without id", 0.08) else f"usr_{10_000 + number}",
            domain=domain,
            keenness=0.2 + 1.6 * self._chance.random(),
            proxy="Apple" if self._happens(0.1) else domain.proxy,
            place=self._pick(PLACES),
            browser=self._pick(_BROWSERS),
            address=f"203.0.113.{number % 254 + 1}",
            devices=(2 if self._happens(0.2) else 1) if has_app else 0,
            browser_token=f"c2bd7fa3c69:{self._hex(16)}" if self._happens(0.25) else None,
            phone=f"+1415555{number:04}" if self._happens(0.3) else None,
            stale_from=self._some_time() if self._paced("stale", 0.007) else _NEVER,
            joined=self._some_time() if self._happens(0.2) else 0,
        )

    def _take_in_new_people(self, start: int) -> None:
        for person in self._people:
            if start <= person.joined < start + SECONDS_OF_DAY:
                self._subscribe(person, person.joined, self._turn("signup", _SIGNUP_SOURCES))
                self._plan(WELCOME_STEPS, person, person.joined + 20)

    def _subscribe(self, person: _Person, moment: int, source: str) -> None:
        properties = {
            "signupSource": source,
            "emailListIds": [NEWSLETTER_LIST] if source == "Import" else [NEWSLETTER_LIST, OFFER_LIST],
            "channelIds": [],
            "messageTypeIds": [],
            "profileUpdatedAt": _created_at(moment),
        }
        self._track("Subscribed", person, moment, properties)

    def _unsubscribe_by_staff(self, start: int) -> None:
        """Unsubscribe two people whom no message made leave; one of them returns a week later."""
        for returns in (False, True):
            person = self._pick(self._people)
            moment = start + self._within(9 * SECONDS_OF_HOUR, 17 * SECONDS_OF_HOUR)
            if person.joined > moment or person.email_until <= moment:
                continue
            source = self._turn("staff", _STAFF_SOURCES)
            properties = {
                "unsubSource": source,
                "emailListIds": [OFFER_LIST],
                "emailListId": OFFER_LIST,
                "channelIds": [],
                "messageTypeIds": [],
            }
            self._track("Unsubscribed", person, moment, properties)
            if returns:
                self._subscribe(person, moment + 7 * SECONDS_OF_DAY, self._turn("signup", _SIGNUP_SOURCES))

    # Sending

    def _plan_blasts(self, day: int, start: int) -> None:
        weekday = (self._first_day + timedelta(days=day)).weekday()
        for campaign in BLASTS:
            if (campaign.week, campaign.weekday) != (day // 7, weekday):
                continue
            for person in self._people:
                if person.joined < start and self._happens(campaign.audience):
                    self._plan((campaign,), person, start + self._within(0, 900))

    def _plan_carts(self, start: int) -> None:
        for person in self._people:
            if person.joined < start and self._happens(0.004 * person.keenness):
                self._plan(CART_STEPS, person, start + self._within(0, SECONDS_OF_DAY - 1))

    def _plan(self, steps: tuple[Campaign, ...], person: _Person, entered: int) -> None:
        """Plan the first of some messages, of which each is sent some hours after the person entered."""
        due = entered + steps[0].hour * SECONDS_OF_HOUR
        heappush(self._planned, (due, next(self._numbers), steps, person, entered))

    def _send_planned(self, end: int) -> None:
        """Send what is due, in the order of time, so that each message knows the consequences of the earlier ones."""
        while self._planned and self._planned[0][0] < end:
            moment, _, steps, person, entered = heappop(self._planned)
            has_ordered = self._send(steps[0], person, moment)
            if steps[1:] and not has_ordered:
                self._plan(steps[1:], person, entered)

    def _send(self, campaign: Campaign, person: _Person, moment: int) -> bool:
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
        message = _Message(campaign, self._pick(campaign.templates), person, self._hex(32), moment)
        if self._paced(f"{channel} skip", 0.004 if channel == "email" else 0.01):
            self._skip(message)
            return False
        send = {
            "email": self._send_email,
            "push": self._send_push,
            "sms": self._send_sms,
            "in_app": self._send_in_app,
            "web_push": self._send_web_push,
        }
        return send[channel](message)

    def _skip(self, message: _Message) -> None:
        names = {
            "email": "Email Send Skip",
            "push": "Push Send Skip",
            "sms": "SMS Send Skip",
            "in_app": "In App Send Skip",
            "web_push": "Web Push Send Skip",
        }
        reason = self._turn("reason", _SKIP_REASONS)
        self._track(
            names[message.campaign.channel], message.person, message.sent, message.properties | {"reason": reason}
        )

    def _clicks(self, message: _Message, rate: float) -> bool:
        return self._happens(rate * message.template.appeal * message.person.keenness)

    # Email

    def _send_email(self, message: _Message) -> bool:
        person, moment = message.person, message.sent
        properties = message.email_properties | {"contentId": 300_000 + message.template.id % 100_000}
        self._track("Email Delivered", person, moment, properties | {"labels": ["coffee"], "espName": "sparkpost"})
        if self._email_bounces(message):
            return False
        self._open_by_machine(message)
        clicks = self._clicks(message, message.campaign.click_rate)
        opens = self._happens(message.campaign.open_rate * person.keenness) or (clicks and self._happens(0.9))
        ordered = False
        if opens or clicks:
            opened = moment + self._within(120, 2 * SECONDS_OF_DAY, power=4)
            if opens and person.proxy != "Apple":
                self._open_by_person(message, opened)
            if clicks:
                ordered = self._click_in_email(message, opened + self._within(15, 240))
            self._visit_preferences(message, opened + self._within(20, 300))
        if self._paced("complaint", 0.0005):
            self._complain(message, moment + self._within(300, SECONDS_OF_DAY))
        return ordered

    def _email_bounces(self, message: _Message) -> bool:
        """Let the email bounce, perhaps; return whether it did."""
        person, moment = message.person, message.sent
        blocks = person.domain.block_rate if moment > (self._start + self._end) // 2 else 0.0
        if person.stale_from < moment:
            bounce = _bounce("HardBounce", "5.1.1", "user unknown")
        elif self._happens(blocks):
            bounce = _bounce(self._turn("block", _BLOCK_STATES), "5.7.1", f"refused by {person.domain.name}")
        elif self._paced("soft bounce", 0.0105):
            bounce = self._turn("soft", _SOFT_BOUNCES)
        else:
            return False
        properties = message.email_properties | bounce
        self._track("Email Bounced", person, moment + self._within(2, 90), properties)
        if person.stale_from < moment < person.email_until:
            person.email_until = moment
            left = {"unsubSource": "HardBounce", "messageId": message.id, "channelIds": [MARKETING_EMAIL]}
            self._track("Unsubscribed", person, moment + 95, left | {"emailListIds": [], "messageTypeIds": []})
        return True

    def _open_by_machine(self, message: _Message) -> None:
        """Let Apple's proxy or a scanner open the email before any person does."""
        person = message.person
        if person.proxy == "Apple" and self._happens(0.95):
            fetched = message.sent + self._within(5, 6 * SECONDS_OF_HOUR, power=3)
            context = {"ip": "192.0.2.90", "userAgent": _APPLE_MAIL}
            properties = message.email_properties | {"proxySource": "Apple", "isBot": False}
            self._track("Email Opened", person, fetched, properties, context)
        if person.domain.scans:
            context = {"ip": "192.0.2.91", "userAgent": _SCANNER}
            properties = message.email_properties | {"userAgentDevice": "Other", "isBot": True}
            self._track("Email Opened", person, message.sent + 2, properties, context)
            if self._happens(0.25):
                link = {"url": message.url, "linkUrl": message.url, "hrefIndex": 0}
                self._track("Email Link Clicked", person, message.sent + 3, properties | link, context)

    def _open_by_person(self, message: _Message, moment: int) -> None:
        person = message.person
        properties = message.email_properties | {"isBot": False} | _place(person)
        if person.proxy:
            properties |= {"proxySource": person.proxy}
        self._track("Email Opened", person, moment, properties, _browser(person))
        if self._happens(0.2):
            later = moment + self._within(600, 2 * SECONDS_OF_DAY)
            self._track("Email Opened", person, later, properties, _browser(person))

    def _click_in_email(self, message: _Message, moment: int) -> bool:
        person, url = message.person, message.url
        link_id = str(3_000_000_000 + message.campaign.id)
        link = {"url": url, "linkUrl": url, "canonicalUrlId": link_id, "linkId": link_id, "hrefIndex": 1}
        properties = message.email_properties | link | {"isBot": False} | _place(person)
        self._track("Email Link Clicked", person, moment, properties, _browser(person))
        if self._happens(0.2):
            other = f"{_SITE}account?utm_campaign={message.campaign.id}"
            properties = properties | {"url": other, "linkUrl": other, "hrefIndex": 4}
            self._track("Email Link Clicked", person, moment + self._within(20, 600), properties, _browser(person))
        return self._order_after(message, moment)

    def _visit_preferences(self, message: _Message, moment: int) -> None:
        """Let a reader visit the page of preferences, perhaps; two of three visitors unsubscribe."""
        person = message.person
        if not self._paced("preferences", 0.005):
            return
        properties = message.email_properties | {"url": "https://links.example.com/preferences"} | _place(person)
        self._track("Hosted Unsubscribe Click", person, moment, properties, _browser(person))
        if person.email_until <= moment or not self._paced("unsubscribe", 0.67):
            return
        person.email_until = moment + 30
        everything = self._happens(0.5)
        left = {
            "unsubSource": "EmailLink",
            "channelIds": [MARKETING_EMAIL] if everything else [],
            "messageTypeIds": [] if everything else [message.campaign.message_type_id],
            "emailListIds": [],
        }
        self._track("Unsubscribed", person, moment + 30, message.email_properties | left)

    def _complain(self, message: _Message, moment: int) -> None:
        person = message.person
        complaint = message.email_properties | {"recipientState": "Complaint"}
        self._track("Email Marked as Spam", person, moment, complaint)
        person.email_until = min(person.email_until, moment)
        left = {"unsubSource": "Complaint", "channelIds": [MARKETING_EMAIL], "emailListIds": [], "messageTypeIds": []}
        self._track("Unsubscribed", person, moment + 2, message.email_properties | left)

    # Other channels

    def _send_push(self, message: _Message) -> bool:
        """Send a push to each device. A tap is an open. A bounce has no message id, as from Iterable."""
        person, moment = message.person, message.sent
        properties = message.properties | {"pushMessage": message.campaign.text, "contentAvailable": False}
        bounced = 0
        for device in range(person.devices):
            self._track("Push Delivered", person, moment + device, properties | {"title": "Roastery"})
            if self._paced("push bounce", 0.012):
                bounced += 1
                without = {name: value for name, value in properties.items() if name != "messageId"}
                self._track("Push Bounced", person, moment + device + 3, without)
        if self._paced("uninstall", 0.006):
            gone = moment + 12 * SECONDS_OF_HOUR
            person.push_until = min(person.push_until, gone)
            self._track("Mobile App Uninstalled", person, gone, properties | {"isGhostPush": True})
        if bounced == person.devices or not self._happens(message.campaign.open_rate * person.keenness):
            return False
        opened = moment + self._within(10, SECONDS_OF_DAY, power=3)
        self._track("Push Opened", person, opened, properties | {"appAlreadyRunning": self._happens(0.2)})
        return self._order_after(message, opened)

    def _send_sms(self, message: _Message) -> bool:
        person, moment = message.person, message.sent
        properties = message.properties | {"smsMessage": message.campaign.text, "fromPhoneNumberId": 268}
        sent = {"toPhoneNumber": person.phone, "fromSMSSenderId": 268, "smsSendCount": 1, "isSMSEstimation": False}
        self._track("SMS Delivered", person, moment, properties | sent)
        if self._paced("sms bounce", 0.02):
            failed = {"errorCode": "30003", "messageStatus": "undelivered", "toPhoneNumber": person.phone}
            self._track("SMS Bounced", person, moment + 20, properties | failed)
            return False
        url = {"clickedUrl": message.url}
        if self._paced("sms scanner", 0.02):
            self._track("SMS Clicked", person, moment + 4, properties | url | {"isBot": True})
        if self._paced("reply", 0.02):
            self._reply(message, moment + self._within(60, SECONDS_OF_HOUR))
        if not self._clicks(message, message.campaign.click_rate):
            return False
        clicked = moment + self._within(20, SECONDS_OF_DAY, power=4)
        self._track("SMS Clicked", person, clicked, properties | url | {"isBot": False})
        return self._order_after(message, clicked)

    def _reply(self, message: _Message, moment: int) -> None:
        """Let the recipient answer; every third answer is STOP."""
        person = message.person
        stops = self._paced("stop", 0.34)
        text = "STOP" if stops else self._turn("reply", _REPLIES)
        received = {"fromPhoneNumber": person.phone, "toPhoneNumber": "+14155550100", "smsMessage": text}
        self._track("SMS Received", person, moment, received)
        if stops:
            person.sms_until = min(person.sms_until, moment)
            left = {"unsubSource": "SMS", "channelIds": [SMS], "emailListIds": [], "messageTypeIds": []}
            self._track("Unsubscribed", person, moment + 1, left)

    def _send_in_app(self, message: _Message) -> bool:
        person, moment = message.person, message.sent
        sent = {
            "inAppBody": message.campaign.text,
            "expiresAt": _created_at(moment + 14 * SECONDS_OF_DAY),
            "messageContext": {"saveToInbox": False, "trigger": "immediate"},
            "priorityLevel": 300.5,
        }
        self._track("In App Sent", person, moment, message.properties | sent)
        if not self._happens(0.98):
            return False
        received = moment + self._within(1, SECONDS_OF_DAY, power=3)
        properties = message.in_app_properties
        self._track("In App Delivered", person, received, properties)
        if not self._happens(message.campaign.open_rate):
            return False
        self._track("In App Opened", person, received + 5, properties)
        if not self._clicks(message, message.campaign.click_rate):
            return False
        clicked = received + self._within(7, 60)
        self._track("In App Clicked", person, clicked, properties | {"clickedUrl": message.url})
        return self._order_after(message, clicked)

    def _send_web_push(self, message: _Message) -> bool:
        person, moment = message.person, message.sent
        push = {"webPushMessage": "Roastery", "webPushBody": message.campaign.text, "webPushClickAction": message.url}
        properties = message.properties | push
        self._track("Web Push Delivered", person, moment, properties | {"browserToken": person.browser_token})
        if not self._clicks(message, message.campaign.click_rate):
            return False
        clicked = moment + self._within(5, SECONDS_OF_DAY, power=4)
        self._track("Web Push Clicked", person, clicked, properties)
        return self._order_after(message, clicked)

    # Orders

    def _order_after(self, message: _Message, clicked: int) -> bool:
        """Let the person order after a click, perhaps; return whether the person did."""
        if not self._happens(message.campaign.order_rate):
            return False
        ordered = clicked + self._within(240, 3 * SECONDS_OF_DAY, power=4)
        self._order(message.person, ordered, message.campaign.order_value)
        return True

    def _take_organic_orders(self, start: int) -> None:
        """Let people order whom no message brought."""
        for person in self._people:
            if person.joined < start and self._happens(0.0006):
                self._order(person, start + self._within(0, SECONDS_OF_DAY - 1), 28.0)

    def _order(self, person: _Person, moment: int, mean: float) -> None:
        self._orders += 1
        order_id = f"A-{1000 + self._orders}"
        value = round(mean * (0.5 + self._chance.random()), 2)
        properties = {
            "order_id": order_id,
            "revenue": value,
            "currency": person.place[4],
            "email": person.email,
            "products": [{"sku": "ETH-250", "quantity": 1 + int(value // 20)}],
        }
        self._track_order(person, moment, properties, "analytics.js")
        if self._paced("tracked twice", 0.15):
            self._track_order(person, moment + self._within(1, 20), properties, "analytics-python")
        self._plan((SHIPPED_EMAIL,), person, moment)
        if self._happens(0.3):
            self._plan((READY_SMS,), person, moment)

    # Calls

    def _hex(self, digits: int) -> str:
        return f"{self._chance.getrandbits(4 * digits):0{digits}x}"

    def _track(
        self,
        event: str,
        person: _Person,
        moment: int,
        properties: dict[str, Any],
        context: dict[str, Any] | None = None,
    ) -> None:
        """Note a call of Iterable. A person without a user id is known by the address."""
        call = {
            "type": "track",
            "messageId": f"api-{self._hex(27)}",
            "event": event,
            **({"userId": person.user_id} if person.user_id else {"anonymousId": person.email}),
            **_times(moment),
            "context": {
                "integration": {"name": "Iterable", "version": "1.0.0"},
                "library": {"name": "unknown", "version": "unknown"},
                "traits": {"email": person.email},
                **(context or {}),
            },
            "properties": {**properties, "createdAt": _created_at(moment), "email": person.email},
        }
        self._iterable.append((moment, call))

    def _track_order(self, person: _Person, moment: int, properties: dict[str, Any], library: str) -> None:
        """Note a call of the app. A person who has not signed in has the random id of a browser."""
        call = {
            "type": "track",
            "messageId": f"ajs-{self._hex(32)}",
            "event": "Order Completed",
            **({"userId": person.user_id} if person.user_id else {"anonymousId": self._hex(32)}),
            **_times(moment),
            "context": {"library": {"name": library, "version": "2.3.0"}, "ip": person.address},
            "properties": dict(properties),
        }
        self._app.append((moment, call))


def _times(moment: int) -> dict[str, str]:
    """Return the times of a call's envelope."""
    text = datetime.fromtimestamp(moment, UTC).isoformat()[:19]
    return {
        "timestamp": f"{text}.000Z",
        "originalTimestamp": f"{text}.000Z",
        "sentAt": f"{text}.412Z",
        "receivedAt": f"{text}.655Z",
    }


def _created_at(moment: int) -> str:
    """Return a time in Iterable's form."""
    return f"{datetime.fromtimestamp(moment, UTC).isoformat(' ')[:19]} +00:00"


def _place(person: _Person) -> dict[str, Any]:
    city, region, country, time_zone, _ = person.place
    return {
        "city": city,
        "region": region,
        "country": country,
        "timeZone": time_zone,
        "userAgentDevice": person.browser[0],
    }


def _browser(person: _Person) -> dict[str, Any]:
    _, system, agent = person.browser
    return {"ip": person.address, "userAgent": agent, "os": {"name": system}}
