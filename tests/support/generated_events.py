"""Random events of all message collections, with every defect that a sender has: for tests that compare two ways."""

import json
import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from loader.events.naming import table_name

CHANNELS = {
    "email": [
        "Email Delivered",
        "Email Opened",
        "Email Link Clicked",
        "Email Bounced",
        "Email Marked as Spam",
        "Hosted Unsubscribe Click",
        "Email Send Skip",
    ],
    "push": ["Push Delivered", "Push Opened", "Push Bounced", "Mobile App Uninstalled", "Push Send Skip"],
    "sms": ["SMS Delivered", "SMS Clicked", "SMS Bounced", "SMS Received", "SMS Send Skip"],
    "in_app": ["In App Sent", "In App Delivered", "In App Opened", "In App Clicked", "In App Send Skip"],
    "web_push": ["Web Push Delivered", "Web Push Clicked", "Web Push Send Skip"],
    "": ["Unsubscribed", "Subscribed"],
}
_START = datetime(2026, 1, 1, tzinfo=UTC)


def generate_events(number: int, *, seed: int, people: int = 60) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield message ids and calls: duplicates, missing ids, machines, renamed campaigns, three kinds of identity."""
    source = random.Random(seed)
    for place in range(number):
        channel = source.choice(["email"] * 6 + [*CHANNELS])
        events = CHANNELS[channel]
        event = source.choice(events[:1] * 4 + events[1:3] * 3 + events)
        person = source.randrange(people)
        campaign = source.choice([0, None, *list(range(1, 8)) * 3])
        call = _call(source, channel, event, person, campaign)
        # Some ids come again, with other properties.
        again = place and source.random() < 0.03
        yield f"g{seed}-{source.randrange(place) if again else place}", call


def _call(source: random.Random, channel: str, event: str, person: int, campaign: int | None) -> dict[str, Any]:
    time = _START + timedelta(minutes=source.randrange(30 * 24 * 60))
    properties: dict[str, Any] = {
        "createdAt": f"{time:%Y-%m-%d %H:%M:%S} +00:00",
        "email": f"User{person}@D{person % 5}.example",
        "campaignId": campaign,
        "channelId": source.choice([0, 1, 2]),
        "messageTypeId": 3,
        "experimentId": campaign if campaign in {3, 4} else 0,
        "templateId": (campaign or 0) * 10 + source.randrange(2),
        "templateName": f"Template {source.randrange(3)}",
    }
    if campaign:
        properties |= {"workflowId": campaign % 3, "workflowName": f"Journey {source.randrange(2)}"}
        properties["campaignName"] = source.choice([None, f"Campaign {campaign}", f"Campaign {campaign} renamed"])
    if source.random() < 0.75:
        properties["messageId"] = f"{channel}-{campaign}-{person}-{source.randrange(3)}"
    properties |= {
        "Email Opened": {
            "proxySource": source.choice(["Apple", "Gmail", None]),
            "isBot": source.choice([True, False, None]),
        },
        "Email Link Clicked": {
            "url": source.choice(["HTTPS://A.example/X?u=1", "https://b.example/y#t", None]),
            "isBot": source.choice([True, False, None]),
        },
        "SMS Clicked": {"clickedUrl": f"https://s.example/{source.randrange(3)}", "isBot": source.choice([True, None])},
        "In App Clicked": {"clickedUrl": f"app://page/{source.randrange(3)}"},
        "Email Bounced": {
            "recipientState": source.choice(
                ["HardBounce", "SoftBounceGeneral", "MailBlockSpam", "DNSFailure", "x", None]
            )
        },
        "Unsubscribed": {
            "unsubSource": source.choice(["EmailLink", "HardBounce", "Complaint", "API", None]),
            "channelIds": source.choice([None, [1, 2], "[2]", "4"]),
            "emailListId": source.choice([None, None, 5]),
        },
        "Subscribed": {"signupSource": "API", "emailListIds": source.choice([None, [5, 6], [0]])},
    }.get(event, {})
    kind = source.random()
    who = {"userId": f"u{person}"} if kind < 0.6 else {"anonymousId": f"user{person}@d{person % 5}.example"}
    if kind > 0.95:
        who = {"anonymousId": f"browser-{person}"}
    if kind > 0.9:
        del properties["email"]
    return {"type": "track", "event": event, **who, "properties": properties, "timestamp": time.isoformat()}


def generate_orders(number: int, *, seed: int, people: int = 60) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield orders of the same people, with orders that two clients tracked, and values of several types."""
    source = random.Random(seed)
    for place in range(number):
        time = _START + timedelta(minutes=source.randrange(30 * 24 * 60))
        person = source.randrange(people)
        who = (
            {"userId": f"u{person}"}
            if source.random() < 0.7
            else {"anonymousId": f"User{person}@d{person % 5}.example"}
        )
        properties = {
            "revenue": source.choice([10, 12.5, "7.25", None]),
            "currency": source.choice(["usd", " EUR ", None]),
            "orderId": source.choice([None, f"order-{source.randrange(200)}"]),
        }
        call = {
            "type": "track",
            "event": "Order Completed",
            **who,
            "properties": properties,
            "timestamp": time.isoformat(),
        }
        yield f"order-{seed}-{source.randrange(place + 1)}", call


def land(connection: psycopg.Connection, message_id: str, call: Mapping[str, Any], *, source: str = "iterable") -> None:
    """Land a call without a collector or file."""
    connection.execute(
        "insert into raw.events (source, collection, message_id, payload) values (%s, %s, %s, %s)",
        [source, table_name(call["event"]), message_id, json.dumps(call)],
    )
