-- The messages of the period and of the period before, by channel. The row without a channel has the messages of all
-- channels: a recipient of several channels counts once there, so the recipients of the channels do not add up to it.
with periods (period, first_day, last_day) as (
    values
    ('current', %(first_day)s, %(last_day)s),
    ('before', %(first_day_before)s, %(last_day_before)s)
),

counted as (
    select
        periods.period,
        messages.channel,
        count(*) as messages,
        sum(messages.sends)::bigint as sends,
        sum(messages.delivered)::bigint as delivered,
        sum(messages.bounces)::bigint as bounces,
        sum(messages.complaints)::bigint as complaints,
        count(distinct messages.recipient_key) filter (where messages.delivered > 0) as unique_delivered,
        count(distinct messages.recipient_key) filter (where messages.human_opens > 0) as unique_human_opens,
        count(distinct messages.recipient_key) filter (where messages.human_clicks > 0) as unique_human_clicks,
        count(distinct messages.recipient_key) filter (
            where messages.recipient_unsubscribes > 0
        ) as unique_recipient_unsubscribes
    from periods
    inner join %(marts)s.messages on messages.day between periods.first_day and periods.last_day
    group by grouping sets ((periods.period, messages.channel), (periods.period))
)

select
    *,
    round(delivered::numeric / nullif(sends, 0), 6) as delivery_rate,
    case
        when channel in ('email', 'push', 'in_app')
            then round(unique_human_opens::numeric / nullif(unique_delivered, 0), 6)
    end as human_open_rate,
    case
        when channel in ('email', 'web_push') then round(unique_human_clicks::numeric / nullif(unique_delivered, 0), 6)
        when channel = 'sms' then round(unique_human_clicks::numeric / nullif(delivered, 0), 6)
        when channel = 'in_app' then round(unique_human_clicks::numeric / nullif(unique_human_opens, 0), 6)
    end as human_click_rate,
    round(unique_recipient_unsubscribes::numeric / nullif(unique_delivered, 0), 6) as recipient_unsubscribe_rate,
    case when channel = 'email' then round(complaints::numeric / nullif(delivered, 0), 6) end as complaint_rate
from counted
order by period desc, sends desc, channel asc
