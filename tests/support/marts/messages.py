"""Computes the mart `messages`: one row for each message key, from the events of the message."""

from collections import Counter
from collections.abc import Sequence

from tests.support.marts.events import event_order
from tests.support.marts.values import Row, day_of, first_of, greatest, least, user_key_of, whole_seconds
from tests.support.marts.variables import Variables

_POOLED = (
    "message_id channel campaign_id campaign_name template_id template_name workflow_id workflow_name experiment_id "
    "channel_id message_type_id user_id email"
).split()

# The counts of events that a message has, by the type of the event.
_COUNTS = {
    "sends": "send",
    "receipts": "receipt",
    "bounces": "bounce",
    "opens": "open",
    "clicks": "click",
    "complaints": "complaint",
    "unsubscribes": "unsubscribe",
    "preference_visits": "preference_visit",
    "uninstalls": "uninstall",
    "replies": "reply",
}
_BOUNCE_CLASSES = ("hard", "block", "soft", "other")


def expected_messages(events: Sequence[Row], variables: Variables) -> list[Row]:
    """Return the rows of `messages`."""
    by_key: dict[str, list[Row]] = {}
    for event in sorted(events, key=event_order):
        if event["message_key"] is not None:
            by_key.setdefault(event["message_key"], []).append(event)
    return [_message(key, found, variables) for key, found in by_key.items()]


def _message(key: str, events: Sequence[Row], variables: Variables) -> Row:
    """Return the message of events in their order."""
    sends_first = sorted(events, key=lambda event: event["type"] != "send")
    message: Row = {name: first_of(event[name] for event in sends_first) for name in _POOLED}
    message["message_key"] = key
    message["channel"] = message["channel"] or "email"
    message["user_key"] = user_key_of(message["user_id"], message["email"]) or first_of(
        event["user_key"] for event in sends_first
    )
    message["recipient_key"] = message["user_key"] or key
    _, _, domain = (message["email"] or "").rpartition("@")
    message["recipient_domain"] = (domain or None) if "@" in (message["email"] or "") else None
    message["is_transactional"] = (
        message["channel_id"] in variables.transactional_channel_ids
        or message["message_type_id"] in variables.transactional_message_type_ids
    )
    message |= _count(events) | _times(events)
    message["has_send"] = message["sends"] > 0
    undelivered = message["sends"] - message["bounces"]
    message["delivered"] = message["receipts"] if message["channel"] == "in_app" else max(undelivered, 0)
    for what in ("open", "click"):
        message[f"seconds_to_first_{what}"] = whole_seconds(message["sent_at"], message[f"first_human_{what}_at"])
    message["day"] = day_of(message["sent_at"] or message["first_event_at"], variables.marts_time_zone)
    return message


def _count(events: Sequence[Row]) -> Row:
    types = Counter(event["type"] for event in events)
    human = Counter(event["type"] for event in events if not event["is_machine"])
    bounces = Counter(event["bounce_class"] for event in events if event["type"] == "bounce")
    counts: Row = {name: types[kind] for name, kind in _COUNTS.items()}
    counts |= {"human_opens": human["open"], "human_clicks": human["click"]}
    counts |= {f"{name}_bounces": bounces[name] for name in _BOUNCE_CLASSES}
    counts["bounce_class"] = first_of(name if bounces[name] else None for name in _BOUNCE_CLASSES)
    counts["recipient_unsubscribes"] = sum(event["unsubscribe_class"] == "recipient" for event in events)
    return counts


def _times(events: Sequence[Row]) -> Row:
    def of(kind: str, *, human: bool = False) -> list:
        return [
            event["occurred_at"] for event in events if event["type"] == kind and not (human and event["is_machine"])
        ]

    times: Row = {
        "sent_at": least(of("send")),
        "first_receipt_at": least(of("receipt")),
        "bounced_at": least(of("bounce")),
        "complained_at": least(of("complaint")),
        "unsubscribed_at": least(of("unsubscribe")),
        "first_event_at": events[0]["occurred_at"],
        "last_event_at": events[-1]["occurred_at"],
    }
    for kind in ("open", "click"):
        for prefix, human in (("", False), ("human_", True)):
            times[f"first_{prefix}{kind}_at"] = least(of(kind, human=human))
            times[f"last_{prefix}{kind}_at"] = greatest(of(kind, human=human))
    return times
