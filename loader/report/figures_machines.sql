-- The opens and clicks of the period's messages, by machines and by people. A recipient counts once in each column.
select
    channel,
    sum(opens)::bigint as opens,
    sum(human_opens)::bigint as human_opens,
    sum(opens - human_opens)::bigint as machine_opens,
    sum(clicks)::bigint as clicks,
    sum(human_clicks)::bigint as human_clicks,
    sum(clicks - human_clicks)::bigint as machine_clicks,
    round(sum(opens - human_opens)::numeric / nullif(sum(opens), 0), 6) as machine_share_of_opens,
    round(sum(clicks - human_clicks)::numeric / nullif(sum(clicks), 0), 6) as machine_share_of_clicks,
    case
        when channel in ('email', 'push', 'in_app')
            then round(
                count(distinct recipient_key) filter (where opens > 0)::numeric
                / nullif(count(distinct recipient_key) filter (where delivered > 0), 0),
                6
            )
    end as open_rate,
    case
        when channel in ('email', 'push', 'in_app')
            then round(
                count(distinct recipient_key) filter (where human_opens > 0)::numeric
                / nullif(count(distinct recipient_key) filter (where delivered > 0), 0),
                6
            )
    end as human_open_rate
from %(marts)s.messages
where day between %(first_day)s and %(last_day)s
group by channel
having sum(opens) + sum(clicks) > 0
order by sum(opens) + sum(clicks) desc, channel asc
