"""The figures of each chart as SQL on the marts, written apart from the charts.

Each statement returns the columns of its chart in their order. Campaigns, journeys and variants have the rates of their
marts. Sums come from another mart than those of the chart, where another mart has them.
"""

_WEEK = "to_char(date_trunc('week', day), 'YYYY-MM-DD')"
_EMAIL = "channel = 'email'"
_CHOSEN = "model = 'last_click' and currency = 'USD'"
_LAST_SENT = "extract(epoch from date_trunc('milliseconds', last_sent_at)) * 1000"


def _people(condition: str) -> str:
    return f"count(distinct case when {condition} then recipient_key end)"


def _rate(condition: str, of: str = "delivered > 0") -> str:
    return f"{_people(condition)}::numeric / nullif({_people(of)}, 0)"


_OPEN_RATE = _rate("human_opens > 0")
_CLICK_RATE = _rate("human_clicks > 0")

_EMAIL_OVERVIEW = {
    "emails_sent": f"select sum(sends) from campaign_daily where {_EMAIL}",
    "email_delivery_rate": f"select sum(delivered)::numeric / sum(sends) from campaign_daily where {_EMAIL}",
    "email_open_rate": f"select {_OPEN_RATE} from messages where {_EMAIL}",
    "email_click_rate": f"select {_CLICK_RATE} from messages where {_EMAIL}",
    "email_people_reached": f"select {_people('delivered > 0')} from messages where {_EMAIL}",
    "email_click_to_open_rate": f"""
        select {_rate("human_clicks > 0", "human_opens > 0 or human_clicks > 0")} from messages where {_EMAIL}
    """,
    "email_unsubscribe_rate": f"select {_rate('recipient_unsubscribes > 0')} from messages where {_EMAIL}",
    "email_complaint_rate": "select sum(complaints)::numeric / sum(delivered) from deliverability_daily",
    "emails_by_week": f"select {_WEEK}, sum(delivered), sum(bounces) from campaign_daily where {_EMAIL} group by 1",
    "email_rates_by_week": f"select {_WEEK}, {_OPEN_RATE}, {_CLICK_RATE} from messages where {_EMAIL} group by 1",
    "email_opens_by_machines": f"""
        select {_WEEK}, sum(human_opens), sum(opens) - sum(human_opens) from campaign_daily where {_EMAIL} group by 1
    """,
    "email_time_to_open": f"""
        select label, count(*)
        from messages
        inner join (
            values
            ('1. < 1 h', 0, 1), ('2. < 6 h', 1, 6), ('3. < 24 h', 6, 24), ('4. < 72 h', 24, 72), ('5. later', 72, 1e9)
        ) as ranges (label, first_hour, end_hour)
            on seconds_to_first_open >= first_hour * 3600 and seconds_to_first_open < end_hour * 3600
        where {_EMAIL}
        group by 1
    """,
    "newest_email_campaigns": f"""
        select campaign_name, {_LAST_SENT}, sends, delivery_rate, human_open_rate, human_click_rate,
            human_click_to_open_rate, recipient_unsubscribe_rate
        from campaign_performance
        where {_EMAIL}
    """,
}

_CAMPAIGNS = {
    "all_campaigns": f"""
        select campaign_name, channel, {_LAST_SENT}, sends, delivery_rate, human_open_rate, human_click_rate,
            human_click_to_open_rate, recipient_unsubscribe_rate
        from campaign_performance
    """,
    "open_rate_by_campaign": f"""
        select campaign_name, human_open_rate from campaign_performance where {_EMAIL} and sends >= 50
    """,
    "click_rate_by_campaign": f"""
        select campaign_name, human_click_rate from campaign_performance where {_EMAIL} and sends >= 50
    """,
    "journeys": """
        select workflow_name, channel, campaigns, sends, human_open_rate, human_click_rate from workflow_performance
    """,
    "variants": """
        select campaign_name, template_name, sends, human_open_rate, human_click_rate from experiment_performance
    """,
    "open_rate_of_journeys": f"""
        select {_WEEK}, campaign_name, {_OPEN_RATE}
        from messages
        where {_EMAIL} and workflow_id is not null
        group by 1, 2
    """,
    "clicked_links": """
        select coalesce(link, 'unknown'), count(*) filter (where not is_machine)
        from events
        where type = 'click'
        group by 1
    """,
}

_DELIVERABILITY = {
    "delivery_rate": f"select sum(delivered)::numeric / sum(sends) from messages where {_EMAIL}",
    "hard_bounce_rate": f"select sum(hard_bounces)::numeric / sum(sends) from messages where {_EMAIL}",
    "block_rate": f"select sum(block_bounces)::numeric / sum(sends) from messages where {_EMAIL}",
    "complaint_rate": f"select sum(complaints)::numeric / sum(delivered) from messages where {_EMAIL}",
    "delivery_rate_by_domain": f"""
        select {_WEEK}, recipient_domain, sum(delivered)::numeric / sum(sends)
        from messages
        where {_EMAIL} and recipient_domain in (
            select recipient_domain from messages where {_EMAIL} group by 1 order by sum(sends) desc limit 6
        )
        group by 1, 2
    """,
    "bounces_by_class": f"""
        select {_WEEK}, sum(hard_bounces), sum(soft_bounces), sum(block_bounces), sum(other_bounces)
        from messages
        where {_EMAIL}
        group by 1
    """,
    "domains": f"""
        select coalesce(recipient_domain, 'unknown'), sum(sends), sum(delivered)::numeric / sum(sends),
            sum(hard_bounces)::numeric / sum(sends), sum(soft_bounces)::numeric / sum(sends),
            sum(block_bounces)::numeric / sum(sends), sum(complaints)::numeric / nullif(sum(delivered), 0)
        from messages
        where {_EMAIL}
        group by 1
    """,
    "open_rate_by_domain": f"""
        select recipient_domain, {_OPEN_RATE} from messages where {_EMAIL} and recipient_domain is not null group by 1
    """,
    "complaints_by_week": f"""
        select {_WEEK}, sum(complaints), sum(unsubscribes) from messages where {_EMAIL} group by 1
    """,
}

_CHANNELS = {
    "messages_sent": "select sum(sends) from campaign_daily",
    "people_reached": f"select {_people('delivered > 0')} from messages",
    "people_who_clicked": f"select {_people('human_clicks > 0')} from messages",
    "sends_by_channel": f"""
        select {_WEEK}, channel, count(*) filter (where type = 'send')
        from events
        where channel is not null
        group by 1, 2
    """,
    "clicks_by_channel": f"""
        select {_WEEK}, channel, count(*) filter (where type = 'click' and not is_machine)
        from events
        where channel is not null
        group by 1, 2
    """,
    "channels_side_by_side": f"""
        select channel, sum(sends), {_people("delivered > 0")}, sum(delivered)::numeric / sum(sends),
            case when channel in ('email', 'push', 'in_app') then {_OPEN_RATE} end,
            case
                when channel in ('email', 'web_push') then {_CLICK_RATE}
                when channel = 'sms' then {_people("human_clicks > 0")}::numeric / sum(delivered)
                when channel = 'in_app' then {_rate("human_clicks > 0", "human_opens > 0")}
            end,
            {_rate("recipient_unsubscribes > 0")}
        from messages
        group by 1
    """,
    "people_by_channel": f"""
        select channel, {_people("delivered > 0")}, {_people("human_opens > 0")}, {_people("human_clicks > 0")}
        from messages
        group by 1
    """,
    "list_changes": f"""
        select {_WEEK}, count(*) filter (where type = 'subscribe'), count(*) filter (where type = 'unsubscribe')
        from events
        group by 1
    """,
}

_REVENUE = {
    "revenue": f"select sum(revenue) from campaign_conversions where {_CHOSEN}",
    "conversions": f"select sum(conversions) from campaign_conversions where {_CHOSEN}",
    "average_value": f"select sum(revenue) / sum(conversions) from campaign_conversions where {_CHOSEN}",
    "revenue_by_week": f"""
        select {_WEEK}, messages.channel, sum(value)
        from attributions
        inner join messages using (message_key)
        where {_CHOSEN}
        group by 1, 2
    """,
    "time_to_convert": f"""
        select label, sum(credit)
        from attributions
        inner join (
            values ('1. < 1 h', 0, 1), ('2. < 24 h', 1, 24), ('3. < 72 h', 24, 72), ('4. later', 72, 1e9)
        ) as ranges (label, first_hour, end_hour)
            on seconds_to_convert >= first_hour * 3600 and seconds_to_convert < end_hour * 3600
        where {_CHOSEN}
        group by 1
    """,
    "campaigns_by_revenue": f"""
        select campaign_name, channel, conversion_name, model, currency, conversions, revenue, conversion_rate,
            revenue_per_thousand, average_value
        from campaign_conversions
        where {_CHOSEN}
    """,
    "revenue_by_model": "select model, sum(revenue) from campaign_conversions where currency = 'USD' group by 1",
    "revenue_per_thousand": f"""
        select campaign_name, revenue_per_thousand from campaign_conversions where {_CHOSEN} and delivered >= 50
    """,
}

EXPECTED = _EMAIL_OVERVIEW | _CAMPAIGNS | _DELIVERABILITY | _CHANNELS | _REVENUE
