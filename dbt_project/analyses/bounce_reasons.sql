-- Which reasons do servers give when they refuse a message?
select
    recipient_state,
    status,
    count(*) as bounces,
    max(bounce_message) as example
from {{ ref('email_bounced') }}
group by recipient_state, status
order by bounces desc, recipient_state, status
limit 20
