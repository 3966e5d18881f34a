"""Computes the marts of success: `conversions`, `attributions`, `campaign_conversions` and `funnel`."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal, localcontext
from typing import Any

from tests.support.marts.events import event_order
from tests.support.marts.performance import Names
from tests.support.marts.values import (
    Row,
    day_of,
    email_of,
    number,
    quotient,
    round_six,
    text,
    time_of,
    user_key_of,
    whole_seconds,
)
from tests.support.marts.variables import Variables, window_seconds

# The rows of the tables of conversions, by schema and table.
ConversionTables = Mapping[tuple[str, str], Iterable[Mapping[str, Any]]]

_STEPS = ("sent", "delivered", "engaged", "clicked", "converted")


def expected_conversions(tables: ConversionTables, variables: Variables) -> list[Row]:
    """Return the rows of `conversions`; a table that is not there has none."""
    return [
        conversion
        for wanted in variables.conversion_events
        for conversion in _conversions(wanted, tables.get((wanted["schema"], wanted["table"]), ()), variables)
    ]


def _conversions(wanted: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], variables: Variables) -> Iterable[Row]:
    read = [
        _read(wanted, row, variables) for row in rows if not wanted.get("event") or row.get("event") == wanted["event"]
    ]
    usable = [each for each in read if each["conversion_id"] is not None and each["occurred_at"] is not None]
    usable.sort(key=_preference)
    by_id: dict[str, Row] = {}
    for each in usable:
        by_id.setdefault(each["conversion_id"], each)
    by_order: dict[tuple[str, str], Row] = {}
    for each in sorted(by_id.values(), key=lambda each: (each["occurred_at"], each["conversion_id"])):
        order = ("order", each["order_id"]) if each["order_id"] is not None else ("row", each["conversion_id"])
        by_order.setdefault(order, each)
    return by_order.values()


def _preference(conversion: Row) -> tuple[Any, ...]:
    """Return the sort key of rows with one id; a value that is missing comes last."""
    order_id, value = conversion["order_id"], conversion["value"]
    return (
        conversion["occurred_at"],
        (order_id is None, order_id or ""),
        (value is None, value or Decimal(0)),
        conversion["currency"],
    )


def _read(wanted: Mapping[str, Any], row: Mapping[str, Any], variables: Variables) -> Row:
    def column(option: str) -> Any:
        return row.get(wanted[option]) if wanted.get(option) else None

    occurred_at = time_of(row.get(wanted.get("time", "timestamp")))
    user_id, email = text(row.get("user_id")), email_of(dict(row))
    return {
        "conversion_name": wanted["name"],
        "conversion_id": text(row.get("id")),
        "occurred_at": occurred_at,
        "day": day_of(occurred_at, variables.marts_time_zone) if occurred_at else None,
        "user_key": user_key_of(user_id, email, text(row.get("anonymous_id"))),
        "user_id": user_id,
        "email": email,
        "order_id": text(column("order_id")),
        "value": number(column("value")),
        "currency": currency.upper() if (currency := text(column("currency"))) else variables.default_currency,
    }


class _Touches:
    """The human touches of messages, by the user id and by the address of their message."""

    def __init__(self, events: Iterable[Row], messages: Iterable[Row], kind: str, variables: Variables) -> None:
        by_key = {message["message_key"]: message for message in messages}
        self._by_user_id: dict[str, list[Row]] = {}
        self._by_email: dict[str, list[Row]] = {}
        for event in sorted(events, key=event_order):
            message = by_key.get(event["message_key"])
            if message is None or event["is_machine"] or not _is_touch(event, message, kind):
                continue
            if message["is_transactional"] and not variables.attribute_transactional:
                continue
            touch = {"touched": event, "message": message}
            if message["user_id"]:
                self._by_user_id.setdefault(message["user_id"], []).append(touch)
            if message["email"]:
                self._by_email.setdefault(message["email"], []).append(touch)

    def of(self, conversion: Row, seconds: Decimal) -> list[Row]:
        """Return the touches of the person in the window of the conversion, in their order."""
        same_id = self._within(self._by_user_id.get(conversion["user_id"], ()), conversion, seconds)
        same_email = self._within(self._by_email.get(conversion["email"], ()), conversion, seconds)
        found = same_id + [touch for touch in same_email if not (conversion["user_id"] and touch["message"]["user_id"])]
        return sorted(found, key=lambda touch: event_order(touch["touched"]))

    @staticmethod
    def _within(touches: Sequence[Row], conversion: Row, seconds: Decimal) -> list[Row]:
        end = conversion["occurred_at"]
        start = end - timedelta(microseconds=int(seconds * 1_000_000))
        first = bisect_left(touches, start, key=lambda touch: touch["touched"]["occurred_at"])
        last = bisect_right(touches, end, key=lambda touch: touch["touched"]["occurred_at"])
        return list(touches[first:last])


def _is_touch(event: Row, message: Row, kind: str) -> bool:
    is_tap = event["type"] == "open" and event["channel"] == "push"
    if kind == "click":
        return event["type"] == "click" or is_tap
    if kind == "open":
        return event["type"] in {"click", "open"}
    return event["type"] == "send" and message["sends"] > message["bounces"]


def expected_attributions(
    events: Sequence[Row], messages: Sequence[Row], conversions: Sequence[Row], variables: Variables
) -> list[Row]:
    """Return the rows of `attributions`."""
    kinds = {model["touch"] for model in variables.attribution_models}
    touches = {kind: _Touches(events, messages, kind, variables) for kind in kinds}
    return [
        row
        for model in variables.attribution_models
        for conversion in conversions
        for row in _attribute(model, conversion, touches[model["touch"]].of(conversion, window_seconds(model)))
    ]


def _attribute(model: Mapping[str, Any], conversion: Row, touches: Sequence[Row]) -> list[Row]:
    chosen: dict[str, Row] = {}
    for touch in touches:
        key = touch["message"]["message_key"]
        if model["position"] == "first":
            chosen.setdefault(key, touch)
        else:
            chosen[key] = touch
    ordered = sorted(chosen.values(), key=lambda each: (each["touched"]["occurred_at"], each["message"]["message_key"]))
    if model["position"] == "first":
        ordered = ordered[:1]
    elif model["position"] == "last":
        ordered = ordered[-1:]
    credits_ = _shares(Decimal(1), len(ordered))
    values = [None] * len(ordered) if conversion["value"] is None else _shares(conversion["value"], len(ordered))
    return [
        {
            "model": model["name"],
            "conversion_name": conversion["conversion_name"],
            "conversion_id": conversion["conversion_id"],
            "message_key": touch["message"]["message_key"],
            "credit": credit,
            "value": value,
            "channel": touch["message"]["channel"],
            "campaign_id": touch["message"]["campaign_id"] or 0,
            "message_day": touch["message"]["day"],
            "touch_type": touch["touched"]["type"],
            "touched_at": touch["touched"]["occurred_at"],
            "converted_at": conversion["occurred_at"],
            "seconds_to_convert": whole_seconds(touch["touched"]["occurred_at"], conversion["occurred_at"]),
            "currency": conversion["currency"],
        }
        for touch, credit, value in zip(ordered, credits_, values, strict=True)
    ]


def _shares(whole: Decimal, parts: int) -> list[Decimal]:
    """Return a number in equal parts of six decimals; the last part makes the sum exact."""
    if parts < 2:
        return [whole] * parts
    with localcontext(prec=200):
        share = round_six(whole / parts)
        return [share] * (parts - 1) + [whole - share * (parts - 1)]


def expected_campaign_conversions(
    attributions: Iterable[Row], conversions: Iterable[Row], campaigns: Iterable[Row], names: Names
) -> list[Row]:
    """Return the rows of `campaign_conversions`."""
    users = {
        (each["conversion_name"], each["conversion_id"]): each["user_key"] or each["conversion_id"]
        for each in conversions
    }
    delivered = {(row["channel"], row["campaign_id"]): row for row in campaigns}
    key = ("model", "conversion_name", "channel", "campaign_id", "currency")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in attributions:
        groups.setdefault(tuple(row[name] for name in key), []).append(row)
    rows = []
    for values, found in groups.items():
        row: Row = dict(zip(key, values, strict=True))
        campaign = delivered[row["channel"], row["campaign_id"]]
        with localcontext(prec=200):
            converted = sum((each["credit"] for each in found), Decimal(0))
            revenue = sum((each["value"] for each in found if each["value"] is not None), Decimal(0))
            thousand_conversions, thousand_revenue = converted * 1000, revenue * 1000
        converting = len({users[each["conversion_name"], each["conversion_id"]] for each in found})
        rows.append(
            row
            | {
                "campaign_name": names.campaigns.get(row["campaign_id"]),
                "conversions": converted,
                "revenue": revenue,
                "converting_users": converting,
                "delivered": campaign["delivered"],
                "unique_delivered": campaign["unique_delivered"],
                "conversion_rate": quotient(converting, campaign["unique_delivered"]),
                "conversions_per_thousand": quotient(thousand_conversions, campaign["delivered"]),
                "revenue_per_thousand": quotient(thousand_revenue, campaign["delivered"]),
                "average_value": quotient(revenue, converted),
            }
        )
    return rows


def expected_funnel(
    recipients: Iterable[Row], messages: Iterable[Row], attributions: Iterable[Row], variables: Variables
) -> list[Row]:
    """Return the rows of `funnel`: five steps for each channel and campaign."""
    credited = {row["message_key"] for row in attributions if row["model"] == variables.primary_attribution_model}
    converted = {
        (message["channel"], message["campaign_id"] or 0, message["recipient_key"])
        for message in messages
        if message["message_key"] in credited
    }
    counts: dict[tuple[str, int], list[int]] = {}
    for recipient in recipients:
        channel, campaign = recipient["channel"], recipient["campaign_id"]
        reached = counts.setdefault((channel, campaign), [0] * len(_STEPS))
        holds = (
            recipient["sends"] > 0,
            channel == "in_app" or recipient["delivered"] > 0,
            recipient["human_opens"] + recipient["human_clicks"] > 0,
            recipient["human_clicks"] > 0 or (channel == "push" and recipient["human_opens"] > 0),
            (channel, campaign, recipient["recipient_key"]) in converted,
        )
        for step, held in enumerate(holds):
            if not held:
                break
            reached[step] += 1
    return [
        {
            "channel": channel,
            "campaign_id": campaign,
            "step": step + 1,
            "step_name": name,
            "recipients": reached[step],
            "share_of_first": quotient(reached[step], reached[0]),
            "share_of_previous": quotient(reached[step], reached[max(step - 1, 0)]),
        }
        for (channel, campaign), reached in counts.items()
        for step, name in enumerate(_STEPS)
    ]
