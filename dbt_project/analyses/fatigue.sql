-- Do people who get more messages in a week unsubscribe more?
with weeks as (
    select
        date_trunc('week', day)::date as week,
        recipient_key,
        sum(sends) as messages,
        bool_or(recipient_unsubscribes > 0) as has_unsubscribed
    from {{ ref('messages') }}
    where sends > 0
    group by date_trunc('week', day), recipient_key
)

select
    case when messages >= 5 then '5 or more' else messages::text end as messages_in_a_week,
    count(*) as person_weeks,
    count(*) filter (where has_unsubscribed) as unsubscribed,
    round(count(*) filter (where has_unsubscribed)::numeric / count(*), 5) as unsubscribe_rate
from weeks
group by case when messages >= 5 then '5 or more' else messages::text end
order by messages_in_a_week
