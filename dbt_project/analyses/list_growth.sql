-- How does each list grow by week, and for which reasons do people leave?
select
    target_type,
    target_id,
    date_trunc('week', valid_from at time zone '{{ var("marts_time_zone") }}')::date as week,
    count(*) filter (where state = 'subscribed') as subscribed,
    count(*) filter (where state = 'unsubscribed') as unsubscribed,
    count(*) filter (where state = 'subscribed') - count(*) filter (where state = 'unsubscribed') as growth,
    string_agg(distinct source, ', ' order by source) filter (where state = 'unsubscribed') as reasons
from {{ ref('subscription_history') }}
group by target_type, target_id, date_trunc('week', valid_from at time zone '{{ var("marts_time_zone") }}')
order by target_type, target_id, week
