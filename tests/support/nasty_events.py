"""Generates nasty events with a seed: all that real senders get wrong, and all ties that an order has to break.

The calls are in the order of landing, which is not that of their times.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from tests.support.marts.events import TYPES

Call = dict[str, Any]

# Entries of `conversion_events`: the orders of an app, the same orders in the app's table of all events, the sales in a
# table of another product, and signups, of which there are none.
CONVERSION = {
    "name": "order",
    "schema": "app",
    "table": "order_completed",
    "value": "revenue",
    "currency": "currency",
    "order_id": "order_id",
}
TRACKED = {"name": "tracked", "schema": "app", "table": "tracks", "event": "order_completed"}
SALE = {"name": "sale", "schema": "shop", "table": "Sales", "value": "total", "order_id": "code", "time": "sold"}
SIGNUP = {"name": "signup", "schema": "app", "table": "signup_completed", "value": "amount", "order_id": "code"}
SALES_TABLE = """
    create schema shop;
    create table shop."Sales" (
        id text, uuid_ts timestamptz, sold text, user_id text, anonymous_id text, total double precision, code bigint
    )
"""

_START = datetime(2026, 3, 1, tzinfo=UTC)
_DAYS = 21
_EVENT_NAMES = {
    "email_marked_as_spam": "Email Marked as Spam",
    **{f"sms_{what}": f"SMS {what.title()}" for what in ("delivered", "clicked", "bounced", "received")},
    "sms_send_skip": "SMS Send Skip",
}
# The collections of each channel; the first one is that of its sends.
_COLLECTIONS: dict[str | None, list[str]] = {
    channel: [name for name, (of, _) in TYPES.items() if of == channel] for channel, _ in TYPES.values()
}
_STATES = (
    *("HardBounce", "hardbounce", "MailBlockGeneral", " mailblockSpamDetected", "SoftBounceGeneral", "DNSFailure"),
    *("Complaint", "", None),
)
_UNSUBSCRIBE_SOURCES = ("EmailLink", "sms", "HardBounce", "Complaint", "API", "ListAPI", "Import", " ", None)
_PROXIES = ("Apple", " apple ", "APPLE", "Gmail", "Yahoo", None, None, None)
_BOTS = (True, False, "true", "False", "maybe", None, None)
_URLS = (
    "https://Shop.Example.com/Roasts?utm_source=x",
    "https://shop.example.com/Roasts#top",
    "HTTPS://SHOP.example.com/Roasts/",
    "app+shop://Host/Path?x",
    "https://shop.example.com",
    "https://SHOP.example.com?x",
    "http://User@HOST.example:80/Path ?x",
    " //Host/Path",
    "mailto:Ann@Example.com",
    "1http://Host/Path",
    "buy now",
    " ",
    "?only=query",
    None,
)
_TARGETS: tuple[Any, ...] = (
    [1, 2],
    ["2", 3.0, 0, None],
    "[1,3]",
    "4",
    [" 3 ", "1e0"],
    [],
    "",
    "n/a",
    [[1], {"a": 2}, True, "x", 2.5],
    None,
    None,
)
_MALFORMED = ("2026-03-04T10:00:00.134105.000Z", "04.03.2026", "2026-03-04", "2026-02-30 10:00:00", "now", "", None)
# Times at which a day ends in UTC, or in New York before and after its clocks go forward on 8 March.
_DAY_BORDERS = [
    datetime(2026, 3, day, hour, tzinfo=UTC) - timedelta(seconds=before)
    for day in (1, 4, 8, 9, 12)
    for hour in (0, 4, 5)
    for before in (0, 1)
]
# Seconds from a touch to a conversion: the ends of the windows of models, and one second beyond.
_WINDOW_ENDS = [0, 0, 0.25, 1, -1, *(hours * 3600 + more for hours in (24, 72, 168, 336) for more in (0, 0.25, 1))]


@dataclass(frozen=True)
class NastyEvents:
    """The calls of two senders in the order of landing, and the rows of a table of another product."""

    iterable: list[Call]
    app: list[Call]
    sales: list[Call]


def generate_nasty_events(count: int = 20_000, seed: int = 1) -> NastyEvents:
    """Return so many calls of Iterable, a tenth as many orders, and some sales.

    The events have every collection and channel. Sends and ids are missing, names change, and machines open. A person
    has up to three identities. Some calls have the id of another call, in the same collection or in another. Days and
    the windows of attribution end between events.
    """
    return _Sender(count, seed).run(count)


class _Sender:
    def __init__(self, count: int, seed: int) -> None:
        self._chance = Random(seed)
        self._people = max(count // 80, 4)
        self._messages = max(count // 6, 4)
        self._numbers = 0
        # The person and the time of each event of a message.
        self._touches: list[tuple[int, datetime]] = []

    def run(self, count: int) -> NastyEvents:
        """Return the calls."""
        iterable = [self._call() for _ in range(count - count // 10)]
        repeated = [self._repeat(self._pick(iterable)) for _ in range(count // 10)]
        app = [self._order() for _ in range(count // 12)]
        app += [self._repeat_order(self._pick(app)) for _ in range(count // 60)]
        sales = [self._sale(number) for number in range(count // 40)]
        calls = iterable + repeated
        self._chance.shuffle(calls)
        self._chance.shuffle(app)
        self._chance.shuffle(sales)
        return NastyEvents(calls, app, sales)

    def _pick(self, values: Sequence[Any]) -> Any:
        return self._chance.choice(values)

    def _happens(self, rate: float) -> bool:
        return self._chance.random() < rate

    def _id(self) -> str:
        """Return ids whose order is not that of the calls, some with characters that collations order differently."""
        self._numbers += 1
        return f"{self._pick(['a', 'B', 'Z', '_', '-'])}{self._numbers * 7919 % 100_003}-{self._numbers}"

    # Whom, when and which campaign

    def _person(self, number: int) -> Call:
        """Return the usual identity of a person, or another: the user id, the address, both, or a phone number."""
        user = self._pick([f"usr_{number}", f"USR_{number}", f" usr_{number} "])
        written = f"person.{number // 2}@{'Example.COM' if number % 3 else 'mail.example'}"
        address = self._pick(
            [written, written.lower(), f"  {written}", f"{number}@placeholder.email", f"person.{number}", f"{written}@"]
        )
        identities: list[Call] = [
            {"userId": user, "context": {"traits": {"email": address}}},
            {"userId": user, "context": {}},
            {"anonymousId": address, "context": {"traits": {"email": address}}},
            {"anonymousId": address, "context": {}},
            {"anonymousId": f"+1415555{number:04}", "context": {}},
        ]
        if self._happens(0.3):
            return self._pick(identities)
        usual = {"userId": f"usr_{number}"} if number % 4 else {"anonymousId": written}
        return {**usual, "context": {"traits": {"email": written}}}

    def _moment(self, number: int) -> datetime:
        """Return one of few times of a message, so that many events share their second."""
        start = _START + timedelta(minutes=number * 37 % (_DAYS * 24 * 60))
        if number % 6 == 0:
            start = _DAY_BORDERS[number // 6 % len(_DAY_BORDERS)]
        after = self._pick([0, 0, 0, 1, 2, 59, 60, 3600, 3600, 86_400, 3 * 86_400, 7 * 86_400])
        return start + timedelta(seconds=after)

    def _times(self, moment: datetime) -> tuple[str, Any]:
        """Return the time of the envelope, and Iterable's own time in one of its forms, or in none."""
        envelope = moment + timedelta(seconds=self._pick([0, 0, 0, -30, 400]))
        forms = [
            f"{moment:%Y-%m-%d %H:%M:%S} +00:00",
            f"{moment:%Y-%m-%d %H:%M:%S} +00:00",
            f"{moment:%Y-%m-%d %H:%M:%S} +0000",
            f"{moment:%Y-%m-%dT%H:%M:%S}.000Z",
            f"{moment:%Y-%m-%dT%H:%M:%S}.250Z",
            f"{moment:%Y-%m-%d %H:%M:%S}",
            f" {moment:%Y-%m-%d %H:%M} UTC ",
            f"{moment - timedelta(hours=5):%Y-%m-%dT%H:%M:%S}-05:00",
        ]
        created = self._pick(_MALFORMED) if self._happens(0.1) else self._pick(forms)
        return _written(envelope), created

    def _odd_id(self, number: int) -> Any:
        """Return an id as a number, or as one of the texts and numbers that senders make of it."""
        if self._happens(0.8):
            return number
        return self._pick(
            [
                *(str(number), float(number), f"{number}.0", f"00{number}", f" {number} ", -number, 2**63),
                *(0, "0", None, number + 0.5, "n/a", "", True),
            ]
        )

    def _name(self, what: str, number: int, moment: datetime) -> Any:
        """Return a name that changes after each week; sometimes it is missing."""
        week = (moment - _START).days // 7
        return self._pick(
            [f"{what} {number} v{week}", f"{what} {number} v{week}", f"  {what} {number} ", "", " ", None]
        )

    def _message(self, number: int, moment: datetime) -> Call:
        campaign = number % 11
        message_id = self._pick([f"m{number}"] * 6 + [f" m{number} ", "", None, None, None])
        return {
            "messageId": message_id,
            "campaignId": self._odd_id(campaign),
            "campaignName": self._name("Campaign", campaign, moment),
            "templateId": self._odd_id(100 + campaign * 2 + number % 2),
            "templateName": self._name("Template", number % 2, moment),
            "workflowId": self._odd_id(campaign) if campaign < 4 else None,
            "workflowName": self._name("Journey", campaign, moment) if campaign < 4 else None,
            "experimentId": self._odd_id(5) if campaign in {2, 7} else None,
            "channelId": self._odd_id(campaign % 4),
            "messageTypeId": self._odd_id(campaign % 5),
        }

    # Calls

    def _call(self) -> Call:
        """Return an event of a message. The number of the message usually decides its person, channel and campaign."""
        number = self._chance.randrange(self._messages)
        who = number * 31 % self._people if self._happens(0.95) else self._chance.randrange(self._people)
        person = self._person(who)
        channel = self._pick(list(_COLLECTIONS)) if self._happens(0.1) else list(_COLLECTIONS)[number // 11 % 6]
        collection = self._pick(_COLLECTIONS[channel])
        if channel and self._happens(0.2):
            collection = _COLLECTIONS[channel][0]
        moment = self._moment(number)
        self._touches.append((who, moment))
        timestamp, created = self._times(moment)
        properties = self._message(number, moment) | self._special(collection) | {"createdAt": created}
        if "anonymousId" not in person and self._happens(0.3):
            properties["email"] = self._pick(["", " ", "Other@Example.com", None])
        return {
            "type": "track",
            "messageId": self._id(),
            "event": _EVENT_NAMES.get(collection, collection.replace("_", " ").title()),
            **person,
            "timestamp": timestamp,
            "properties": properties,
        }

    def _special(self, collection: str) -> Call:
        """Return the properties that a collection has beside those of its message."""
        _, kind = TYPES[collection]
        special: Call = {}
        if kind in {"open", "click"}:
            special = {"isBot": self._pick(_BOTS), "proxySource": self._pick(_PROXIES)}
        if kind == "click":
            special |= {name: self._pick(_URLS) for name in ("url", "linkUrl", "clickedUrl", "webPushClickAction")}
        elif kind == "bounce":
            special = {"recipientState": self._pick(_STATES)}
        elif kind == "skip":
            special = {"reason": self._pick(["DuplicateMarketingMessage", " FrequencyCap ", "", None])}
        elif kind in {"subscribe", "unsubscribe"}:
            special = {
                "channelIds": self._pick(_TARGETS),
                "messageTypeIds": self._pick(_TARGETS),
                "emailListIds": self._pick(_TARGETS),
                "userListIds": self._pick(_TARGETS),
                "emailListId": self._pick([9, "9", 0, None, None]),
                "unsubSource": self._pick(_UNSUBSCRIBE_SOURCES),
                "signupSource": self._pick(["WebForm", " API", "", None]),
            }
            if self._happens(0.3):
                special |= dict.fromkeys(["channelIds", "messageTypeIds", "emailListIds", "userListIds", "emailListId"])
        return special

    def _repeat(self, call: Call) -> Call:
        """Return a call with the id of another: the same once more, with other values, or in another collection."""
        again: Call = json.loads(json.dumps(call))
        nastiness = self._chance.random()
        if nastiness < 0.5:
            again["properties"] |= {"campaignId": 10, "messageId": "m0", "campaignName": "Repeated"}
        elif nastiness < 0.75:
            again = self._call() | {"messageId": call["messageId"]}
        return again

    def _order(self) -> Call:
        number, moment = self._buyer()
        person = self._person(number)
        order = self._chance.randrange(2_000)
        return {
            "type": "track",
            "messageId": self._id(),
            "event": "Order Completed",
            **person,
            "timestamp": _written(moment),
            "properties": {
                "order_id": self._pick([f"A-{order}", f"A-{order}", f" A-{order} ", order, "", None]),
                "revenue": self._pick([10, 12.5, "7", "12.50", 0.01, 100 / 3, 1e15 + 1, "NaN", "n/a", "", None]),
                "currency": self._pick(["USD", "usd ", "EUR", "", None]),
                "email": self._pick([None, None, "", f"Person.{number // 2}@mail.example"]),
            },
        }

    def _buyer(self) -> tuple[int, datetime]:
        """Return a person and the time of an order, often at the end of a window after an event of the person."""
        if self._happens(0.3):
            moment = _START + timedelta(seconds=60 * self._chance.randrange(_DAYS * 24 * 60))
            return self._chance.randrange(self._people), moment
        number, moment = self._pick(self._touches)
        return number, moment + timedelta(seconds=self._pick(_WINDOW_ENDS))

    def _repeat_order(self, call: Call) -> Call:
        """Return the order tracked once more: by another call, some seconds earlier or later."""
        moment = datetime.fromisoformat(call["timestamp"]) + timedelta(seconds=self._pick([-5, 0, 5]))
        again = {"messageId": self._id(), "timestamp": _written(moment)}
        return json.loads(json.dumps(call)) | again

    def _sale(self, number: int) -> Call:
        """Return a row of a table that another product fills, which may lack its id or its time."""
        who, moment = self._buyer()
        arrived = datetime(2026, 4, 1, tzinfo=UTC) - timedelta(seconds=self._chance.randrange(70 * 3600))
        person = self._person(who)
        return {
            "id": self._pick([f"{number}", f"{number}", f" {number} ", " ", None]),
            "uuid_ts": arrived,
            "sold": self._pick([f"{moment:%Y-%m-%d %H:%M:%S}", _written(moment), _written(moment), "soon", None]),
            "user_id": person.get("userId"),
            "anonymous_id": person.get("anonymousId"),
            "total": self._pick([10.0, 0.1, 12.345678, float("nan"), None]),
            "code": self._pick([None, self._chance.randrange(200)]),
        }


def _written(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
