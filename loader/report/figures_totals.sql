-- The messages of the period and of the period before, by channel. The row without a channel has the messages of all
-- channels: a recipient of several channels counts once there, so the recipients of the channels do not add up to it.
with recipients as (
    select
        case when day >= %(first_day)s then 'current' else 'before' end as period,
        channel,
        recipient_key,
        count(*) as messages,
        sum(sends) as sends,
        sum(delivered) as delivered,
        sum(bounces) as bounces,
        sum(complaints) as complaints,
        bool_or(delivered > 0) as is_reached,
        bool_or(human_opens > 0) as has_opened,
        bool_or(human_clicks > 0) as has_clicked,
        bool_or(recipient_unsubscribes > 0) as has_unsubscribed
    from %(marts)s.messages
    -- The period before ends on the day before the first day.
    where day between %(first_day_before)s and %(last_day)s
    group by case when day >= %(first_day)s then 'current' else 'before' end, channel, recipient_key
),

recipients_of_all as (
    select *
    from recipients
    union all
    select
        period,
        null as channel,
        recipient_key,
        sum(messages) as messages,
        sum(sends) as sends,
        sum(delivered) as delivered,
        sum(bounces) as bounces,
        sum(complaints) as complaints,
        bool_or(is_reached) as is_reached,
        bool_or(has_opened) as has_opened,
        bool_or(has_clicked) as has_clicked,
        bool_or(has_unsubscribed) as has_unsubscribed
    from recipients
    group by period, recipient_key
),

counted as (
    select
        period,
        channel,
        sum(messages)::bigint as messages,
        sum(sends)::bigint as sends,
        sum(delivered)::bigint as delivered,
        sum(bounces)::bigint as bounces,
        sum(complaints)::bigint as complaints,
        count(*) filter (where is_reached) as unique_delivered,
        count(*) filter (where has_opened) as unique_human_opens,
        count(*) filter (where has_clicked) as unique_human_clicks,
        count(*) filter (where has_unsubscribed) as unique_recipient_unsubscribes
    from recipients_of_all
    group by period, channel
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
