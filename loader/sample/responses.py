"""The responses of recipients to messages, channel by channel: bounces, opens, clicks, replies and unsubscribes."""

from collections.abc import Callable
from typing import Any, Protocol

from loader.sample.calls import SITE, Message, Person, browser, created_at, place
from loader.sample.campaigns import MARKETING_EMAIL, SECONDS_OF_DAY, SECONDS_OF_HOUR, SMS
from loader.sample.chance import Chance

_BLOCK_STATES = ("MailBlockSpamDetected", "MailBlockGeneral", "MailBlockKnownSpammer")
_SKIP_REASONS = ("DuplicateMarketingMessage", "FrequencyCapMessage")
_REPLIES = ("Yes please", "What are your hours?", "Thank you!")

_APPLE_MAIL = "Mozilla/5.0"
_SCANNER = "Mozilla/5.0 (compatible; LinkScanner/1.0)"


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


class Track(Protocol):
    """A function that notes an event of Iterable."""

    def __call__(
        self, event: str, person: Person, moment: int, properties: dict[str, Any], context: dict[str, Any] | None = None
    ) -> None:
        """Note an event of a person at a time, in seconds since 1970."""


class Responses:
    """Tracks the events of messages and of the responses to them.

    Args:
        chance: The source of chance.
        track: Notes an event of Iterable.
        order_after: Lets the person order after a click at a time, perhaps; returns whether the person did.
        blocks_from: The time from which some mail domains block emails, in seconds since 1970.
    """

    def __init__(
        self, chance: Chance, track: Track, order_after: Callable[[Message, int], bool], blocks_from: int
    ) -> None:
        self._chance = chance
        self._track = track
        self._order_after = order_after
        self._blocks_from = blocks_from

    def follow(self, message: Message) -> bool:
        """Track the send of a message, or its skip, with all responses; return whether the person ordered."""
        channel = message.campaign.channel
        if self._chance.paced(f"{channel} skip", 0.004 if channel == "email" else 0.01):
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

    def _skip(self, message: Message) -> None:
        names = {
            "email": "Email Send Skip",
            "push": "Push Send Skip",
            "sms": "SMS Send Skip",
            "in_app": "In App Send Skip",
            "web_push": "Web Push Send Skip",
        }
        reason = self._chance.turn("reason", _SKIP_REASONS)
        self._track(
            names[message.campaign.channel], message.person, message.sent, message.properties | {"reason": reason}
        )

    def _clicks(self, message: Message, rate: float) -> bool:
        return self._chance.happens(rate * message.template.appeal * message.person.keenness)

    # Email

    def _send_email(self, message: Message) -> bool:
        person, moment = message.person, message.sent
        properties = message.email_properties | {"contentId": 300_000 + message.template.id % 100_000}
        self._track("Email Delivered", person, moment, properties | {"labels": ["coffee"], "espName": "sparkpost"})
        if self._email_bounces(message):
            return False
        self._open_by_machine(message)
        clicks = self._clicks(message, message.campaign.click_rate)
        opens = self._chance.happens(message.campaign.open_rate * person.keenness) or (
            clicks and self._chance.happens(0.9)
        )
        ordered = False
        if opens or clicks:
            opened = moment + self._chance.within(120, 2 * SECONDS_OF_DAY, power=4)
            if opens and person.proxy != "Apple":
                self._open_by_person(message, opened)
            if clicks:
                ordered = self._click_in_email(message, opened + self._chance.within(15, 240))
            self._visit_preferences(message, opened + self._chance.within(20, 300))
        if self._chance.paced("complaint", 0.0005):
            self._complain(message, moment + self._chance.within(300, SECONDS_OF_DAY))
        return ordered

    def _email_bounces(self, message: Message) -> bool:
        """Let the email bounce, perhaps; return whether it did."""
        person, moment = message.person, message.sent
        blocks = person.domain.block_rate if moment > self._blocks_from else 0.0
        if person.stale_from < moment:
            bounce = _bounce("HardBounce", "5.1.1", "user unknown")
        elif self._chance.happens(blocks):
            bounce = _bounce(self._chance.turn("block", _BLOCK_STATES), "5.7.1", f"refused by {person.domain.name}")
        elif self._chance.paced("soft bounce", 0.0105):
            bounce = self._chance.turn("soft", _SOFT_BOUNCES)
        else:
            return False
        properties = message.email_properties | bounce
        self._track("Email Bounced", person, moment + self._chance.within(2, 90), properties)
        if person.stale_from < moment < person.email_until:
            person.email_until = moment
            left = {"unsubSource": "HardBounce", "messageId": message.id, "channelIds": [MARKETING_EMAIL]}
            self._track("Unsubscribed", person, moment + 95, left | {"emailListIds": [], "messageTypeIds": []})
        return True

    def _open_by_machine(self, message: Message) -> None:
        """Let Apple's proxy or a scanner open the email before any person does."""
        person = message.person
        if person.proxy == "Apple" and self._chance.happens(0.95):
            fetched = message.sent + self._chance.within(5, 6 * SECONDS_OF_HOUR, power=3)
            context = {"ip": "192.0.2.90", "userAgent": _APPLE_MAIL}
            properties = message.email_properties | {"proxySource": "Apple", "isBot": False}
            self._track("Email Opened", person, fetched, properties, context)
        if person.domain.scans:
            context = {"ip": "192.0.2.91", "userAgent": _SCANNER}
            properties = message.email_properties | {"userAgentDevice": "Other", "isBot": True}
            self._track("Email Opened", person, message.sent + 2, properties, context)
            if self._chance.happens(0.25):
                link = {"url": message.url, "linkUrl": message.url, "hrefIndex": 0}
                self._track("Email Link Clicked", person, message.sent + 3, properties | link, context)

    def _open_by_person(self, message: Message, moment: int) -> None:
        person = message.person
        properties = message.email_properties | {"isBot": False} | place(person)
        if person.proxy:
            properties |= {"proxySource": person.proxy}
        self._track("Email Opened", person, moment, properties, browser(person))
        if self._chance.happens(0.2):
            later = moment + self._chance.within(600, 2 * SECONDS_OF_DAY)
            self._track("Email Opened", person, later, properties, browser(person))

    def _click_in_email(self, message: Message, moment: int) -> bool:
        person, url = message.person, message.url
        link_id = str(3_000_000_000 + message.campaign.id)
        link = {"url": url, "linkUrl": url, "canonicalUrlId": link_id, "linkId": link_id, "hrefIndex": 1}
        properties = message.email_properties | link | {"isBot": False} | place(person)
        self._track("Email Link Clicked", person, moment, properties, browser(person))
        if self._chance.happens(0.2):
            other = f"{SITE}account?utm_campaign={message.campaign.id}"
            properties = properties | {"url": other, "linkUrl": other, "hrefIndex": 4}
            self._track(
                "Email Link Clicked", person, moment + self._chance.within(20, 600), properties, browser(person)
            )
        return self._order_after(message, moment)

    def _visit_preferences(self, message: Message, moment: int) -> None:
        """Let a reader visit the page of preferences, perhaps; two of three visitors unsubscribe."""
        person = message.person
        if not self._chance.paced("preferences", 0.005):
            return
        properties = message.email_properties | {"url": "https://links.example.com/preferences"} | place(person)
        self._track("Hosted Unsubscribe Click", person, moment, properties, browser(person))
        if person.email_until <= moment or not self._chance.paced("unsubscribe", 0.67):
            return
        person.email_until = moment + 30
        everything = self._chance.happens(0.5)
        left = {
            "unsubSource": "EmailLink",
            "channelIds": [MARKETING_EMAIL] if everything else [],
            "messageTypeIds": [] if everything else [message.campaign.message_type_id],
            "emailListIds": [],
        }
        self._track("Unsubscribed", person, moment + 30, message.email_properties | left)

    def _complain(self, message: Message, moment: int) -> None:
        person = message.person
        complaint = message.email_properties | {"recipientState": "Complaint"}
        self._track("Email Marked as Spam", person, moment, complaint)
        person.email_until = min(person.email_until, moment)
        left = {"unsubSource": "Complaint", "channelIds": [MARKETING_EMAIL], "emailListIds": [], "messageTypeIds": []}
        self._track("Unsubscribed", person, moment + 2, message.email_properties | left)

    # Other channels

    def _send_push(self, message: Message) -> bool:
        """Send a push to each device. A tap is an open. A bounce has no message id, as from Iterable."""
        person, moment = message.person, message.sent
        properties = message.properties | {"pushMessage": message.campaign.text, "contentAvailable": False}
        bounced = 0
        for device in range(person.devices):
            self._track("Push Delivered", person, moment + device, properties | {"title": "Roastery"})
            if self._chance.paced("push bounce", 0.012):
                bounced += 1
                without = {name: value for name, value in properties.items() if name != "messageId"}
                self._track("Push Bounced", person, moment + device + 3, without)
        if self._chance.paced("uninstall", 0.006):
            gone = moment + 12 * SECONDS_OF_HOUR
            person.push_until = min(person.push_until, gone)
            self._track("Mobile App Uninstalled", person, gone, properties | {"isGhostPush": True})
        if bounced == person.devices or not self._chance.happens(message.campaign.open_rate * person.keenness):
            return False
        opened = moment + self._chance.within(10, SECONDS_OF_DAY, power=3)
        self._track("Push Opened", person, opened, properties | {"appAlreadyRunning": self._chance.happens(0.2)})
        return self._order_after(message, opened)

    def _send_sms(self, message: Message) -> bool:
        person, moment = message.person, message.sent
        properties = message.properties | {"smsMessage": message.campaign.text, "fromPhoneNumberId": 268}
        sent = {"toPhoneNumber": person.phone, "fromSMSSenderId": 268, "smsSendCount": 1, "isSMSEstimation": False}
        self._track("SMS Delivered", person, moment, properties | sent)
        if self._chance.paced("sms bounce", 0.02):
            failed = {"errorCode": "30003", "messageStatus": "undelivered", "toPhoneNumber": person.phone}
            self._track("SMS Bounced", person, moment + 20, properties | failed)
            return False
        url = {"clickedUrl": message.url}
        if self._chance.paced("sms scanner", 0.02):
            self._track("SMS Clicked", person, moment + 4, properties | url | {"isBot": True})
        if self._chance.paced("reply", 0.02):
            self._reply(message, moment + self._chance.within(60, SECONDS_OF_HOUR))
        if not self._clicks(message, message.campaign.click_rate):
            return False
        clicked = moment + self._chance.within(20, SECONDS_OF_DAY, power=4)
        self._track("SMS Clicked", person, clicked, properties | url | {"isBot": False})
        return self._order_after(message, clicked)

    def _reply(self, message: Message, moment: int) -> None:
        """Let the recipient answer; every third answer is STOP."""
        person = message.person
        stops = self._chance.paced("stop", 0.34)
        text = "STOP" if stops else self._chance.turn("reply", _REPLIES)
        received = {"fromPhoneNumber": person.phone, "toPhoneNumber": "+14155550100", "smsMessage": text}
        self._track("SMS Received", person, moment, received)
        if stops:
            person.sms_until = min(person.sms_until, moment)
            left = {"unsubSource": "SMS", "channelIds": [SMS], "emailListIds": [], "messageTypeIds": []}
            self._track("Unsubscribed", person, moment + 1, left)

    def _send_in_app(self, message: Message) -> bool:
        person, moment = message.person, message.sent
        sent = {
            "inAppBody": message.campaign.text,
            "expiresAt": created_at(moment + 14 * SECONDS_OF_DAY),
            "messageContext": {"saveToInbox": False, "trigger": "immediate"},
            "priorityLevel": 300.5,
        }
        self._track("In App Sent", person, moment, message.properties | sent)
        if not self._chance.happens(0.98):
            return False
        received = moment + self._chance.within(1, SECONDS_OF_DAY, power=3)
        properties = message.in_app_properties
        self._track("In App Delivered", person, received, properties)
        if not self._chance.happens(message.campaign.open_rate):
            return False
        self._track("In App Opened", person, received + 5, properties)
        if not self._clicks(message, message.campaign.click_rate):
            return False
        clicked = received + self._chance.within(7, 60)
        self._track("In App Clicked", person, clicked, properties | {"clickedUrl": message.url})
        return self._order_after(message, clicked)

    def _send_web_push(self, message: Message) -> bool:
        person, moment = message.person, message.sent
        push = {"webPushMessage": "Roastery", "webPushBody": message.campaign.text, "webPushClickAction": message.url}
        properties = message.properties | push
        self._track("Web Push Delivered", person, moment, properties | {"browserToken": person.browser_token})
        if not self._clicks(message, message.campaign.click_rate):
            return False
        clicked = moment + self._chance.within(5, SECONDS_OF_DAY, power=4)
        self._track("Web Push Clicked", person, clicked, properties)
        return self._order_after(message, clicked)
