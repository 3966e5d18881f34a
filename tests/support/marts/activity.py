"""Computes the marts over single events: `channel_daily`, `link_performance` and `user_engagement`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date, timedelta

from tests.support.marts.events import event_order
from tests.support.marts.performance import Names
from tests.support.marts.values import Row, day_of, first_of, greatest, least, quotient
from tests.support.marts.variables import Variables

_DAILY = {
    "sends": "send",
    "receipts": "receipt",
    "bounces": "bounce",
    "opens": "open",
    "clicks": "click",
    "complaints": "complaint",
    "unsubscribes": "unsubscribe",
    "subscribes": "subscribe",
    "preference_visits": "preference_visit",
    "uninstalls": "uninstall",
    "replies": "reply",
    "skips": "skip",
}
_CHANNELS = ("email", "sms", "push", "web_push", "in_app")
_WINDOWS = (7, 30, 90)


def expected_channel_daily(events: Iterable[Row]) -> list[Row]:
    """Return the rows of `channel_daily`."""
    groups: dict[tuple[str, date], list[Row]] = {}
    for event in events:
        groups.setdefault((event["channel"] or "none", event["day"]), []).append(event)
    rows = []
    for (channel, day), found in groups.items():
        types = Counter(event["type"] for event in found)
        human = [event for event in found if not event["is_machine"]]
        engaged = [event for event in human if event["type"] in {"open", "click", "reply"}]
        rows.append(
            {
                "channel": channel,
                "day": day,
                "events": len(found),
                **{name: types[kind] for name, kind in _DAILY.items()},
                "human_opens": sum(event["type"] == "open" for event in human),
                "human_clicks": sum(event["type"] == "click" for event in human),
                "reached_users": _count_users(event for event in found if event["type"] == "send"),
                "engaged_users": _count_users(engaged),
            }
        )
    return rows


def _count_users(events: Iterable[Row]) -> int:
    return len({event["user_key"] for event in events} - {None})


def expected_links(events: Iterable[Row], messages: Iterable[Row], names: Names) -> list[Row]:
    """Return the rows of `link_performance`."""
    by_key = {message["message_key"]: message for message in messages}
    groups: dict[tuple[str, int, str], list[tuple[Row, str]]] = {}
    human_clicks: Counter[tuple[str, int]] = Counter()
    for event in events:
        if event["type"] != "click":
            continue
        message = by_key.get(event["message_key"])
        campaign = (message and message["campaign_id"]) or event["campaign_id"] or 0
        clicker = message["recipient_key"] if message else event["user_key"] or event["id"]
        groups.setdefault((event["channel"], campaign, event["link"] or "unknown"), []).append((event, clicker))
        human_clicks[event["channel"], campaign] += not event["is_machine"]
    rows = []
    for (channel, campaign, link), found in groups.items():
        human = [(event, clicker) for event, clicker in found if not event["is_machine"]]
        rows.append(
            {
                "channel": channel,
                "campaign_id": campaign,
                "link": link,
                "campaign_name": names.campaigns.get(campaign),
                "clicks": len(found),
                "human_clicks": len(human),
                "unique_clicks": len({clicker for _, clicker in found}),
                "unique_human_clicks": len({clicker for _, clicker in human}),
                "first_clicked_at": min(event["occurred_at"] for event, _ in found),
                "last_clicked_at": max(event["occurred_at"] for event, _ in found),
                "share_of_human_clicks": quotient(len(human), human_clicks[channel, campaign]),
            }
        )
    return rows


def expected_engagement(events: Iterable[Row], variables: Variables) -> list[Row]:
    """Return the rows of `user_engagement`."""
    by_user: dict[str, list[Row]] = {}
    for event in sorted(events, key=event_order):
        if event["user_key"]:
            by_user.setdefault(event["user_key"], []).append(event)
    return [_engagement(user, found, variables) for user, found in by_user.items()]


def _engagement(user: str, events: Sequence[Row], variables: Variables) -> Row:
    """Return the row of a user, from the user's events in their order."""
    acts = {
        "sent": [event for event in events if event["type"] == "send"],
        "open": [event for event in events if event["type"] == "open" and not event["is_machine"]],
        "click": [event for event in events if event["type"] == "click" and not event["is_machine"]],
    }
    row: Row = {
        "user_key": user,
        "user_id": first_of(event["user_id"] for event in reversed(events)),
        "email": first_of(event["email"] for event in reversed(events)),
        "first_sent_at": least(event["occurred_at"] for event in acts["sent"]),
        "as_of_date": variables.today,
    }
    for act, found in acts.items():
        row[f"last_{act}_at"] = greatest(event["occurred_at"] for event in found)
        for channel in _CHANNELS:
            times = [event["occurred_at"] for event in found if event["channel"] == channel]
            row[f"{channel}_last_{act}_at"] = greatest(times)
    for days in _WINDOWS:
        after = variables.today - timedelta(days=days)
        for act, name in (("sent", "sends"), ("open", "opens"), ("click", "clicks")):
            row[f"{name}_{days}d"] = sum(after < event["day"] <= variables.today for event in acts[act])
    row["last_engaged_at"] = greatest([row["last_open_at"], row["last_click_at"]])
    row["engagement_level"] = _level(row, variables)
    return row


def _level(row: Row, variables: Variables) -> str:
    zone = variables.marts_time_zone
    if row["last_engaged_at"]:
        days = (variables.today - day_of(row["last_engaged_at"], zone)).days
        if days <= variables.engagement_active_days:
            return "active"
        return "lapsing" if days <= variables.engagement_lapsing_days else "dormant"
    if row["first_sent_at"]:
        days = (variables.today - day_of(row["first_sent_at"], zone)).days
        return "new" if days <= variables.engagement_active_days else "unengaged"
    return "unreached"
