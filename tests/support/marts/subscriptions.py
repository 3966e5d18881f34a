"""Computes the marts `subscription_history` and `subscriptions`."""

from collections.abc import Iterable, Sequence

from tests.support.marts.values import Row, ids_in, iterable_id, text

_LISTS = (
    ("channel", "channel_ids"),
    ("message_type", "message_type_ids"),
    ("list", "email_list_ids"),
    ("list", "user_list_ids"),
)

Target = tuple[str, int]


def targets_of(event: Row) -> set[Target]:
    """Return the channels, message types and lists that an event is about."""
    row = event["row"]
    found = {(kind, each) for kind, column in _LISTS for each in ids_in(row.get(column))}
    if only_list := iterable_id(row.get("email_list_id")):
        found.add(("list", only_list))
    if found:
        return found
    if event["channel_id"]:
        return {("channel", event["channel_id"])}
    if event["message_type_id"]:
        return {("message_type", event["message_type_id"])}
    return {("unspecified", 0)}


def expected_subscriptions(events: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of both marts, by mart."""
    by_target: dict[tuple[str, Target], list[Row]] = {}
    for event in events:
        if event["type"] in {"subscribe", "unsubscribe"} and event["user_key"]:
            for target in targets_of(event):
                by_target.setdefault((event["user_key"], target), []).append(event)
    history, current = [], []
    for (user, (kind, target)), found in by_target.items():
        key = {"user_key": user, "target_type": kind, "target_id": target}
        found.sort(key=lambda event: (event["occurred_at"], event["type"] == "unsubscribe", event["id"]))
        periods = _periods(found)
        history += [key | period for period in periods]
        last = periods[-1]
        current.append(
            key
            | {
                "state": last["state"],
                "since": last["valid_from"],
                "source": last["source"],
                "campaign_id": last["campaign_id"],
                "first_event_at": found[0]["occurred_at"],
                "last_event_at": found[-1]["occurred_at"],
                "events": len(found),
                "changes": len(periods) - 1,
            }
        )
    return {"subscription_history": history, "subscriptions": current}


def _periods(events: Sequence[Row]) -> list[Row]:
    """Return the periods of ordered events of one target; the last of several at one moment counts."""
    last_at = {event["occurred_at"]: event for event in events}
    periods: list[Row] = []
    for moment, event in last_at.items():
        state = "subscribed" if event["type"] == "subscribe" else "unsubscribed"
        if periods and periods[-1]["state"] == state:
            continue
        if periods:
            periods[-1]["valid_to"] = moment
        source = "signup_source" if state == "subscribed" else "unsub_source"
        periods.append(
            {
                "valid_from": moment,
                "valid_to": None,
                "state": state,
                "source": text(event["row"].get(source)),
                "event_id": event["id"],
                "campaign_id": event["campaign_id"],
            }
        )
    return periods
