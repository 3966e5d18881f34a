"""Computes the marts that add messages up: by campaign, template, day, journey, experiment, domain and recipient."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.marts.events import event_order
from tests.support.marts.values import Row, first_of, greatest, least, quotient

SUMS = (
    "sends receipts bounces hard_bounces soft_bounces block_bounces other_bounces delivered opens human_opens clicks "
    "human_clicks complaints unsubscribes recipient_unsubscribes preference_visits uninstalls replies"
).split()

# The condition for a message to count in a number of distinct recipients.
_UNIQUES: dict[str, Callable[[Row], bool]] = {
    "unique_sends": lambda message: message["sends"] > 0,
    "unique_bounces": lambda message: message["bounces"] > 0,
    "unique_delivered": lambda message: message["delivered"] > 0,
    "unique_opens": lambda message: message["opens"] > 0,
    "unique_human_opens": lambda message: message["human_opens"] > 0,
    "unique_clicks": lambda message: message["clicks"] > 0,
    "unique_human_clicks": lambda message: message["human_clicks"] > 0,
    "unique_opens_or_clicks": lambda message: message["opens"] + message["clicks"] > 0,
    "unique_human_opens_or_clicks": lambda message: message["human_opens"] + message["human_clicks"] > 0,
    "unique_complaints": lambda message: message["complaints"] > 0,
    "unique_unsubscribes": lambda message: message["unsubscribes"] > 0,
    "unique_recipient_unsubscribes": lambda message: message["recipient_unsubscribes"] > 0,
    "unique_preference_visits": lambda message: message["preference_visits"] > 0,
}
_DELIVERABILITY = (
    "messages sends delivered bounces hard_bounces soft_bounces block_bounces other_bounces complaints unsubscribes "
    "unique_delivered unique_human_opens unique_human_clicks"
).split()


def measures(messages: Sequence[Row]) -> Row:
    """Return the counts of events and of distinct recipients over messages."""
    counted: Row = {
        "messages": len(messages),
        "messages_without_send": sum(not message["has_send"] for message in messages),
    }
    counted |= {name: sum(message[name] for message in messages) for name in SUMS}
    return counted | {
        name: len({message["recipient_key"] for message in messages if counts(message)})
        for name, counts in _UNIQUES.items()
    }


def rates(channel: str, counted: Row) -> Row:
    """Return the rates of a channel; None where the channel has no such rate."""

    def rate(numerator: str, denominator: str, *channels: str) -> Any:
        applies = not channels or channel in channels
        return quotient(counted[numerator], counted[denominator]) if applies else None

    clicked_of = {"sms": "delivered", "in_app": "unique_opens"}.get(channel, "unique_delivered")
    human_clicked_of = {"sms": "delivered", "in_app": "unique_human_opens"}.get(channel, "unique_delivered")
    clickable = ("email", "sms", "web_push", "in_app")
    return {
        "delivery_rate": rate("delivered", "sends"),
        "bounce_rate": rate("bounces", "sends", "email", "sms", "push"),
        "open_rate": rate("unique_opens", "unique_delivered", "email", "push", "in_app"),
        "human_open_rate": rate("unique_human_opens", "unique_delivered", "email", "push", "in_app"),
        "click_rate": rate("unique_clicks", clicked_of, *clickable),
        "human_click_rate": rate("unique_human_clicks", human_clicked_of, *clickable),
        "click_to_open_rate": rate("unique_clicks", "unique_opens_or_clicks", "email", "in_app"),
        "human_click_to_open_rate": rate("unique_human_clicks", "unique_human_opens_or_clicks", "email", "in_app"),
        "complaint_rate": rate("complaints", "delivered", "email"),
        "unsubscribe_rate": rate("unique_unsubscribes", "unique_delivered"),
        "recipient_unsubscribe_rate": rate("unique_recipient_unsubscribes", "unique_delivered"),
    }


@dataclass(frozen=True)
class Names:
    """The latest name of each id, from the last event that has both."""

    campaigns: Mapping[int | None, str]
    campaign_workflows: Mapping[int | None, int]
    campaign_workflow_names: Mapping[int | None, str]
    templates: Mapping[int | None, str]
    workflows: Mapping[int | None, str]


def latest_names(events: Iterable[Row]) -> Names:
    """Return the names that aggregates show."""
    ordered = sorted(events, key=event_order)

    def latest(key: str, value: str) -> dict[int | None, Any]:
        return {event[key]: event[value] for event in ordered if event[key] and event[value] is not None}

    return Names(
        latest("campaign_id", "campaign_name"),
        latest("campaign_id", "workflow_id"),
        latest("campaign_id", "workflow_name"),
        latest("template_id", "template_name"),
        latest("workflow_id", "workflow_name"),
    )


def _grouped(rows: Iterable[Row], key: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Return rows by key, with 0 for an id that is None."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        values = tuple(0 if name.endswith("_id") and row[name] is None else row[name] for name in key)
        groups.setdefault(values, []).append(row)
    return groups


def _performance(
    messages: Iterable[Row], skips: Iterable[Row] | None, key: Sequence[str]
) -> list[tuple[Row, list[Row]]]:
    """Return each row of a mart with its messages: the key, the measures, the rates and the skips."""
    groups = _grouped(messages, key)
    skipped = _grouped(skips or (), key)
    rows = []
    for values in {**groups, **skipped}:
        row = dict(zip(key, values, strict=True))
        found = groups.get(values, [])
        counted = measures(found)
        row |= counted | rates(row["channel"], counted)
        if skips is not None:
            row["skips"] = len(skipped.get(values, ()))
        rows.append((row, found))
    return rows


def _sending_times(messages: Sequence[Row]) -> Row:
    times = [message["sent_at"] for message in messages]
    return {"first_sent_at": least(times), "last_sent_at": greatest(times)}


def expected_performance(events: Sequence[Row], messages: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of the marts of section 4.3 of the contract, by mart."""
    names = latest_names(events)
    skips = [event for event in events if event["type"] == "skip"]
    marts: dict[str, list[Row]] = {}

    marts["campaign_performance"] = [
        row
        | _sending_times(found)
        | {
            "campaign_name": names.campaigns.get(row["campaign_id"]),
            "workflow_id": names.campaign_workflows.get(row["campaign_id"]),
            "workflow_name": names.campaign_workflow_names.get(row["campaign_id"]),
            "is_transactional": any(message["is_transactional"] for message in found),
        }
        for row, found in _performance(messages, skips, ("channel", "campaign_id"))
    ]
    marts["template_performance"] = [
        row
        | _sending_times(found)
        | {
            "campaign_name": names.campaigns.get(row["campaign_id"]),
            "template_name": names.templates.get(row["template_id"]),
        }
        for row, found in _performance(messages, skips, ("channel", "campaign_id", "template_id"))
    ]
    marts["campaign_daily"] = [
        row | {"campaign_name": names.campaigns.get(row["campaign_id"])}
        for row, _ in _performance(messages, skips, ("channel", "campaign_id", "day"))
    ]
    marts["workflow_performance"] = [
        row
        | _sending_times(found)
        | {
            "workflow_name": names.workflows.get(row["workflow_id"]),
            "campaigns": len({message["campaign_id"] for message in found} - {None}),
        }
        for row, found in _performance(
            [message for message in messages if message["workflow_id"]],
            [skip for skip in skips if skip["workflow_id"]],
            ("workflow_id", "channel"),
        )
    ]
    marts["experiment_performance"] = [
        row
        | _sending_times(found)
        | {
            "campaign_name": names.campaigns.get(row["campaign_id"]),
            "template_name": names.templates.get(row["template_id"]),
        }
        for row, found in _performance(
            [message for message in messages if message["experiment_id"]],
            None,
            ("experiment_id", "channel", "campaign_id", "template_id"),
        )
    ]
    marts["deliverability_daily"] = _deliverability(messages)
    marts["campaign_recipients"] = _recipients(messages)
    return marts


def _deliverability(messages: Iterable[Row]) -> list[Row]:
    emails = [
        message | {"recipient_domain": message["recipient_domain"] or "unknown"}
        for message in messages
        if message["channel"] == "email"
    ]
    rows = []
    for (domain, day), found in _grouped(emails, ("recipient_domain", "day")).items():
        counted = measures(found)
        every_rate = rates("email", counted)
        rows.append(
            {"recipient_domain": domain, "day": day}
            | {name: counted[name] for name in _DELIVERABILITY}
            | {name: every_rate[name] for name in ("delivery_rate", "complaint_rate", "human_open_rate")}
            | {
                "hard_bounce_rate": quotient(counted["hard_bounces"], counted["sends"]),
                "soft_bounce_rate": quotient(counted["soft_bounces"], counted["sends"]),
                "block_rate": quotient(counted["block_bounces"], counted["sends"]),
            }
        )
    return rows


def _recipients(messages: Iterable[Row]) -> list[Row]:
    rows = []
    key = ("channel", "campaign_id", "recipient_key")
    for (channel, campaign, recipient), found in _grouped(messages, key).items():
        latest_first = sorted(found, key=lambda each: (each["first_event_at"], each["message_key"]), reverse=True)
        rows.append(
            {
                "channel": channel,
                "campaign_id": campaign,
                "recipient_key": recipient,
                "user_key": first_of(message["user_key"] for message in found),
                "user_id": first_of(message["user_id"] for message in latest_first),
                "email": first_of(message["email"] for message in latest_first),
                "messages": len(found),
                **{name: sum(message[name] for message in found) for name in SUMS},
                **_sending_times(found),
                **{
                    f"first_human_{what}_at": least(message[f"first_human_{what}_at"] for message in found)
                    for what in ("open", "click")
                },
                **{
                    f"last_human_{what}_at": greatest(message[f"last_human_{what}_at"] for message in found)
                    for what in ("open", "click")
                },
            }
        )
    return rows
