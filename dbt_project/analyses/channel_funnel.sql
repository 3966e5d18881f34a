-- Where do people drop, channel against channel?
with steps as (
    select channel, step, step_name, sum(recipients) as recipients
    from {{ ref('funnel') }}
    group by channel, step, step_name
)

select
    step,
    step_name,
    channel,
    recipients,
    round(recipients / nullif(first_value(recipients) over by_step, 0), 3) as share_of_first,
    round(recipients / nullif(lag(recipients) over by_step, 0), 3) as share_of_previous
from steps
window by_step as (partition by channel order by step)
order by channel, step
