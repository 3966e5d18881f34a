"""Computes the rows of all marts from the rows of the served tables, by the marts' contract alone.

It shares no code with the dbt project, so it can disagree with the SQL.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tests.support.marts import events as mart_of_events
from tests.support.marts.activity import expected_channel_daily, expected_engagement, expected_links
from tests.support.marts.conversions import (
    ConversionTables,
    expected_attributions,
    expected_campaign_conversions,
    expected_conversions,
    expected_funnel,
)
from tests.support.marts.messages import expected_messages
from tests.support.marts.performance import expected_performance, latest_names
from tests.support.marts.subscriptions import expected_subscriptions
from tests.support.marts.values import Row
from tests.support.marts.variables import Variables

KEYS: dict[str, tuple[str, ...]] = {
    "events": ("event", "id"),
    "messages": ("message_key",),
    "campaign_performance": ("channel", "campaign_id"),
    "template_performance": ("channel", "campaign_id", "template_id"),
    "campaign_daily": ("channel", "campaign_id", "day"),
    "workflow_performance": ("workflow_id", "channel"),
    "experiment_performance": ("experiment_id", "channel", "campaign_id", "template_id"),
    "channel_daily": ("channel", "day"),
    "deliverability_daily": ("recipient_domain", "day"),
    "link_performance": ("channel", "campaign_id", "link"),
    "campaign_recipients": ("channel", "campaign_id", "recipient_key"),
    "subscriptions": ("user_key", "target_type", "target_id"),
    "subscription_history": ("user_key", "target_type", "target_id", "valid_from"),
    "user_engagement": ("user_key",),
    "conversions": ("conversion_name", "conversion_id"),
    "attributions": ("model", "conversion_name", "conversion_id", "message_key"),
    "campaign_conversions": ("model", "conversion_name", "channel", "campaign_id", "currency"),
    "funnel": ("channel", "campaign_id", "step"),
}


def expected_marts(
    tables: Mapping[str, Iterable[Mapping[str, Any]]],
    conversion_tables: ConversionTables | None = None,
    variables: Variables | None = None,
) -> dict[str, list[Row]]:
    """Return the rows of every mart, by mart, in no particular order.

    Args:
        tables: The rows of the served tables of one source, by collection.
        conversion_tables: The rows of the tables of conversions, by schema and table.
        variables: The variables of the marts; None for their defaults.
    """
    variables = variables or Variables()
    events = mart_of_events.expected_events(tables, variables)
    messages = expected_messages(events, variables)
    names = latest_names(events)
    marts = expected_performance(events, messages) | expected_subscriptions(events)
    conversions = expected_conversions(conversion_tables or {}, variables)
    attributions = expected_attributions(events, messages, conversions, variables)
    return marts | {
        "events": [{name: event[name] for name in mart_of_events.COLUMNS} for event in events],
        "messages": messages,
        "channel_daily": expected_channel_daily(events),
        "link_performance": expected_links(events, messages, names),
        "user_engagement": expected_engagement(events, variables),
        "conversions": conversions,
        "attributions": attributions,
        "campaign_conversions": expected_campaign_conversions(
            attributions, conversions, marts["campaign_performance"], names
        ),
        "funnel": expected_funnel(marts["campaign_recipients"], messages, attributions, variables),
    }
