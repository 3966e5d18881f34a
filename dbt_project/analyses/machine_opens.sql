-- How much of the open rate is machines, by recipient domain?
select
    recipient_domain,
    count(distinct recipient_key) filter (where delivered > 0) as unique_delivered,
    round(
        count(distinct recipient_key) filter (where opens > 0)::numeric
        / nullif(count(distinct recipient_key) filter (where delivered > 0), 0),
        3
    ) as open_rate,
    round(
        count(distinct recipient_key) filter (where human_opens > 0)::numeric
        / nullif(count(distinct recipient_key) filter (where delivered > 0), 0),
        3
    ) as human_open_rate,
    round(1 - sum(human_opens)::numeric / nullif(sum(opens), 0), 3) as share_of_machine_opens
from {{ ref('messages') }}
where channel = 'email'
group by recipient_domain
order by unique_delivered desc, recipient_domain
limit 20
