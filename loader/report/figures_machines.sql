-- The opens and clicks of the period's messages, by machines and by people. A recipient counts once in each column.
with recipients as (
    select
        channel,
        recipient_key,
        sum(opens) as opens,
        sum(human_opens) as human_opens,
        sum(clicks) as clicks,
        sum(human_clicks) as human_clicks,
        bool_or(delivered > 0) as is_reached
    from %(marts)s.messages
    where day between %(first_day)s and %(last_day)s
    group by channel, recipient_key
),

counted as (
    select
        channel,
        sum(opens)::bigint as opens,
        sum(human_opens)::bigint as human_opens,
        sum(opens - human_opens)::bigint as machine_opens,
        sum(clicks)::bigint as clicks,
        sum(human_clicks)::bigint as human_clicks,
        sum(clicks - human_clicks)::bigint as machine_clicks,
        count(*) filter (where is_reached) as unique_delivered,
        count(*) filter (where opens > 0) as unique_opens,
        count(*) filter (where human_opens > 0) as unique_human_opens
    from recipients
    group by channel
)

select
    channel,
    opens,
    human_opens,
    machine_opens,
    clicks,
    human_clicks,
    machine_clicks,
    round(machine_opens::numeric / nullif(opens, 0), 6) as machine_share_of_opens,
    round(machine_clicks::numeric / nullif(clicks, 0), 6) as machine_share_of_clicks,
    case
        when channel in ('email', 'push', 'in_app') then round(unique_opens::numeric / nullif(unique_delivered, 0), 6)
    end as open_rate,
    case
        when channel in ('email', 'push', 'in_app')
            then round(unique_human_opens::numeric / nullif(unique_delivered, 0), 6)
    end as human_open_rate
from counted
where opens + clicks > 0
order by opens + clicks desc, channel asc
