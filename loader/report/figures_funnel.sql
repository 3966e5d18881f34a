-- The recipients of the period's messages who reached each step and all steps before it, by channel.
with steps (step, step_name) as (
    values (1, 'sent'), (2, 'delivered'), (3, 'engaged'), (4, 'clicked'), (5, 'converted')
),

recipients as (
    select
        messages.channel,
        messages.recipient_key,
        sum(messages.sends) as sends,
        sum(messages.delivered) as delivered,
        sum(messages.human_opens) as human_opens,
        sum(messages.human_clicks) as human_clicks,
        bool_or(converted.message_key is not null) as is_converted
    from %(marts)s.messages
    left join (
        select distinct message_key
        from %(marts)s.attributions
        where model = %(model)s
    ) as converted on converted.message_key = messages.message_key
    where messages.day between %(first_day)s and %(last_day)s
    group by messages.channel, messages.recipient_key
),

reached as (
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

counted as (
    select
        reached.channel,
        steps.step,
        steps.step_name,
        count(*) filter (where reached.last_step >= steps.step) as recipients
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
