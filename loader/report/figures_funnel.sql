-- The recipients of the period's messages who reached each step and all steps before it, by channel.
with steps (step, step_name) as (
    values (1, 'sent'), (2, 'delivered'), (3, 'engaged'), (4, 'clicked'), (5, 'converted')
),

messages_and_conversions as (
    select
        channel,
        recipient_key,
        sends,
        delivered,
        human_opens,
        human_clicks,
        false as is_converted
    from %(marts)s.messages
    where day between %(first_day)s and %(last_day)s
    union all
    -- The few messages with a conversion are looked up, so the cost does not depend on the statistics of the table.
    select
        messages.channel,
        messages.recipient_key,
        0 as sends,
        0 as delivered,
        0 as human_opens,
        0 as human_clicks,
        true as is_converted
    from %(marts)s.attributions
    inner join %(marts)s.messages on messages.message_key = attributions.message_key
    where attributions.model = %(model)s and attributions.message_day between %(first_day)s and %(last_day)s
),

recipients as (
    select
        channel,
        recipient_key,
        sum(sends) as sends,
        sum(delivered) as delivered,
        sum(human_opens) as human_opens,
        sum(human_clicks) as human_clicks,
        bool_or(is_converted) as is_converted
    from messages_and_conversions
    group by channel, recipient_key
),

last_steps as (
    select
        channel,
        case
            when sends = 0 then 0
            when delivered = 0 and channel <> 'in_app' then 1
            when human_opens + human_clicks = 0 then 2
            when human_clicks = 0 and not (channel = 'push' and human_opens > 0) then 3
            when not is_converted then 4
            else 5
        end as last_step
    from recipients
),

reached as (
    select
        channel,
        last_step,
        count(*) as recipients
    from last_steps
    group by channel, last_step
),

counted as (
    select
        reached.channel,
        steps.step,
        steps.step_name,
        coalesce(sum(reached.recipients) filter (where reached.last_step >= steps.step), 0)::bigint as recipients
    from reached
    cross join steps
    group by reached.channel, steps.step, steps.step_name
)

select
    *,
    round(
        recipients::numeric / nullif(first_value(recipients) over (partition by channel order by step), 0), 6
    ) as share_of_first
from counted
order by first_value(recipients) over (partition by channel order by step) desc, channel asc, step asc
