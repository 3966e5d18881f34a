"""Computes the mart `events`: an event of a message or a subscription, all channels alike."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import yaml

from tests.support.folders import ROOT
from tests.support.marts.values import (
    Row,
    day_of,
    email_of,
    iterable_id,
    link_of,
    seconds_since_1970,
    text,
    time_of,
    user_key_of,
)
from tests.support.marts.variables import Variables

# The channel and the type of each collection; subscriptions are about any channel.
TYPES: dict[str, tuple[str | None, str]] = {
    "email_delivered": ("email", "send"),
    "email_opened": ("email", "open"),
    "email_link_clicked": ("email", "click"),
    "email_bounced": ("email", "bounce"),
    "email_marked_as_spam": ("email", "complaint"),
    "hosted_unsubscribe_click": ("email", "preference_visit"),
    "email_send_skip": ("email", "skip"),
    "push_delivered": ("push", "send"),
    "push_opened": ("push", "open"),
    "push_bounced": ("push", "bounce"),
    "mobile_app_uninstalled": ("push", "uninstall"),
    "push_send_skip": ("push", "skip"),
    "sms_delivered": ("sms", "send"),
    "sms_clicked": ("sms", "click"),
    "sms_bounced": ("sms", "bounce"),
    "sms_received": ("sms", "reply"),
    "sms_send_skip": ("sms", "skip"),
    "in_app_sent": ("in_app", "send"),
    "in_app_delivered": ("in_app", "receipt"),
    "in_app_opened": ("in_app", "open"),
    "in_app_clicked": ("in_app", "click"),
    "in_app_send_skip": ("in_app", "skip"),
    "web_push_delivered": ("web_push", "send"),
    "web_push_clicked": ("web_push", "click"),
    "web_push_send_skip": ("web_push", "skip"),
    "unsubscribed": (None, "unsubscribe"),
    "subscribed": (None, "subscribe"),
}

COLUMNS = (
    "event id channel type occurred_at day message_key message_id user_key user_id email campaign_id campaign_name "
    "template_id template_name workflow_id workflow_name experiment_id channel_id message_type_id is_machine "
    "bounce_class unsubscribe_class link skip_reason"
).split()
_IDS = ("campaign_id", "template_id", "workflow_id", "experiment_id", "channel_id", "message_type_id")
_NAMES = ("campaign_name", "template_name", "workflow_name")
_WITH_BOTS = {"email_opened", "email_link_clicked", "sms_clicked"}


@cache
def declared_columns() -> Mapping[str, frozenset[str]]:
    """Return the columns that the models declare, by collection. The marts read no other column."""
    declared = yaml.safe_load((ROOT / "dbt_project" / "catalogue" / "tables.yml").read_text(encoding="utf-8"))
    shared = declared["shared_columns"]
    return {table["name"]: frozenset([*shared, *table["columns"]]) for table in declared["tables"] if table["columns"]}


def event_order(event: Row) -> tuple[datetime, str, str]:
    """Return the sort key of the order of events."""
    return event["occurred_at"], event["event"], event["id"]


def expected_events(tables: Mapping[str, Iterable[Mapping[str, Any]]], variables: Variables) -> list[Row]:
    """Return the rows of `events`, in their order, with the columns that subscriptions need besides.

    Args:
        tables: The rows of the served tables, by collection.
        variables: The variables of the marts.
    """
    events = [
        _read(
            collection,
            {name: value for name, value in row.items() if name in declared_columns()[collection]},
            variables,
        )
        for collection in TYPES
        for row in tables.get(collection, ())
    ]
    events.sort(key=event_order)
    _set_message_keys(events)
    return events


def _read(collection: str, row: Row, variables: Variables) -> Row:
    channel, kind = TYPES[collection]
    occurred_at = time_of(row.get("created_at")) or row["timestamp"]
    user_id, email = text(row.get("user_id")), email_of(row)
    event: Row = {
        "event": collection,
        "id": row["id"],
        "channel": channel,
        "type": kind,
        "occurred_at": occurred_at,
        "day": day_of(occurred_at, variables.marts_time_zone),
        "message_id": text(row.get("message_id")),
        "user_key": user_key_of(user_id, email, text(row.get("anonymous_id"))),
        "user_id": user_id,
        "email": email,
        "is_machine": _is_machine(collection, row, variables),
        "bounce_class": _bounce_class(row) if kind == "bounce" else None,
        "unsubscribe_class": _unsubscribe_class(row) if kind == "unsubscribe" else None,
        "link": link_of(_url(collection, row)) if kind == "click" else None,
        "skip_reason": text(row.get("reason")) if kind == "skip" else None,
        "row": row,
    }
    event |= {name: iterable_id(row.get(name)) for name in _IDS}
    return event | {name: text(row.get(name)) for name in _NAMES}


def _is_machine(collection: str, row: Row, variables: Variables) -> bool:
    if collection in _WITH_BOTS and row.get("is_bot") is True:
        return True
    proxy = text(row.get("proxy_source"))
    return collection == "email_opened" and proxy is not None and proxy.lower() in variables.proxies


def _bounce_class(row: Row) -> str:
    state = (text(row.get("recipient_state")) or "").lower()
    if state == "hardbounce":
        return "hard"
    if state.startswith("mailblock"):
        return "block"
    return "soft" if state.startswith("softbounce") or state == "dnsfailure" else "other"


def _unsubscribe_class(row: Row) -> str:
    source = (text(row.get("unsub_source")) or "").lower()
    classes = {"emaillink": "recipient", "sms": "recipient", "hardbounce": "bounce", "complaint": "complaint"}
    return classes.get(source, "system")


def _url(collection: str, row: Row) -> str | None:
    if collection == "email_link_clicked":
        return text(row.get("url")) or text(row.get("link_url"))
    return text(row.get("web_push_click_action" if collection == "web_push_clicked" else "clicked_url"))


def _set_message_keys(events: Sequence[Row]) -> None:
    """Give each event the key of its message: first all sends, then the events that look for a send."""
    sends: dict[tuple[str, int, str | None], list[tuple[datetime, str]]] = {}
    for event in events:
        if event["type"] == "send":
            key = event["message_key"] = _own_key(event)
            user, campaign = event["user_key"], event["campaign_id"]
            if key and user and campaign:
                # An event without a channel looks among the sends of all channels.
                for channel in (event["channel"], None):
                    sends.setdefault((user, campaign, channel), []).append((event["occurred_at"], key))
    for found in sends.values():
        found.sort()
    for event in events:
        if event["type"] in {"skip", "subscribe"}:
            event["message_key"] = None
        elif event["type"] != "send":
            event["message_key"] = _own_key(event) or _key_of_send(event, sends)


def _own_key(event: Row) -> str | None:
    if event["message_id"]:
        return f"m:{event['message_id']}"
    user, campaign = event["user_key"], event["campaign_id"]
    if event["type"] == "send" and user and campaign:
        return f"f:{event['channel']}:{campaign}:{seconds_since_1970(event['occurred_at'])}:{user}"
    return None


def _key_of_send(event: Row, sends: Mapping[tuple[str, int, str | None], Sequence[tuple[datetime, str]]]) -> str | None:
    user, campaign, channel = event["user_key"], event["campaign_id"], event["channel"]
    if not user or not campaign:
        return None
    found = sends.get((user, campaign, channel), ())
    earlier = bisect_right(found, event["occurred_at"], key=lambda send: send[0])
    if earlier:
        return found[earlier - 1][1]
    return f"f:{channel or 'email'}:{campaign}:-:{user}"
