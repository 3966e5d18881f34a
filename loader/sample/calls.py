"""The form of the calls in the sample: the properties of people and messages, and the envelope."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from loader.sample.campaigns import SECONDS_OF_DAY, Campaign, MailDomain, Template

Call = dict[str, Any]

SITE = "https://www.example.com/"
NEVER = 2**40


@dataclass
class Person:
    """A recipient, and the times until which the recipient gets messages."""

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
    email_until: int = NEVER
    sms_until: int = NEVER
    push_until: int = NEVER


@dataclass(frozen=True)
class Message:
    """A message that was sent to a person."""

    campaign: Campaign
    template: Template
    person: Person
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
            "expiresAt": created_at(self.sent + 14 * SECONDS_OF_DAY),
            "deviceInfo": {"deviceId": f"d-{self.person.user_id}", "platform": "iOS", "appPackageName": "com.example"},
            "messageContext": {"saveToInbox": False, "silentInbox": False, "location": "in-app"},
        }

    @cached_property
    def url(self) -> str:
        """Return the link of the message."""
        return f"{SITE}{self.campaign.path}?utm_campaign={self.campaign.id}"


def iterable_call(
    event: str, *, person: Person, moment: int, properties: dict[str, Any], context: dict[str, Any], message_id: str
) -> Call:
    """Return a call of Iterable. A person without a user id is known by the address.

    Args:
        event: The name of the event.
        person: The person whose event it is.
        moment: The time of the event, in seconds since 1970.
        properties: The properties of the event.
        context: Further parts of the context.
        message_id: The id of the call.
    """
    return {
        "type": "track",
        "messageId": message_id,
        "event": event,
        **({"userId": person.user_id} if person.user_id else {"anonymousId": person.email}),
        **_times(moment),
        "context": {
            "integration": {"name": "Iterable", "version": "1.0.0"},
            "library": {"name": "unknown", "version": "unknown"},
            "traits": {"email": person.email},
            **context,
        },
        "properties": {**properties, "createdAt": created_at(moment), "email": person.email},
    }


def order_call(
    *, person: Person, moment: int, properties: dict[str, Any], library: str, message_id: str, anonymous_id: str
) -> Call:
    """Return a call of the app.

    Args:
        person: The person who orders.
        moment: The time of the order, in seconds since 1970.
        properties: The properties of the order.
        library: The library that tracks the order.
        message_id: The id of the call.
        anonymous_id: The id of the browser, for a person who has not signed in.
    """
    return {
        "type": "track",
        "messageId": message_id,
        "event": "Order Completed",
        **({"userId": person.user_id} if person.user_id else {"anonymousId": anonymous_id}),
        **_times(moment),
        "context": {"library": {"name": library, "version": "2.3.0"}, "ip": person.address},
        "properties": dict(properties),
    }


def _times(moment: int) -> dict[str, str]:
    """Return the times of a call's envelope."""
    text = datetime.fromtimestamp(moment, UTC).isoformat()[:19]
    return {
        "timestamp": f"{text}.000Z",
        "originalTimestamp": f"{text}.000Z",
        "sentAt": f"{text}.412Z",
        "receivedAt": f"{text}.655Z",
    }


def created_at(moment: int) -> str:
    """Return a time in Iterable's form."""
    return f"{datetime.fromtimestamp(moment, UTC).isoformat(' ')[:19]} +00:00"


def place(person: Person) -> dict[str, Any]:
    """Return the properties of an open or click that tell the place."""
    city, region, country, time_zone, _ = person.place
    return {
        "city": city,
        "region": region,
        "country": country,
        "timeZone": time_zone,
        "userAgentDevice": person.browser[0],
    }


def browser(person: Person) -> dict[str, Any]:
    """Return the context of an open or click, which tells the browser."""
    _, system, agent = person.browser
    return {"ip": person.address, "userAgent": agent, "os": {"name": system}}
