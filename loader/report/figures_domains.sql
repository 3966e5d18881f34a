-- The emails of the period by the domain of the recipient, the domains with most sends first.
with recipients as (
    select
        coalesce(recipient_domain, 'unknown') as recipient_domain,
        recipient_key,
        sum(sends) as sends,
        sum(delivered) as delivered,
        sum(hard_bounces) as hard_bounces,
        sum(soft_bounces) as soft_bounces,
        sum(block_bounces) as block_bounces,
        sum(complaints) as complaints,
        bool_or(delivered > 0) as is_reached,
        bool_or(human_opens > 0) as has_opened
    from %(marts)s.messages
    where channel = 'email' and day between %(first_day)s and %(last_day)s
    group by coalesce(recipient_domain, 'unknown'), recipient_key
),

counted as (
    select
        recipient_domain,
        sum(sends)::bigint as sends,
        sum(delivered)::bigint as delivered,
        sum(hard_bounces)::bigint as hard_bounces,
        sum(soft_bounces)::bigint as soft_bounces,
        sum(block_bounces)::bigint as block_bounces,
        sum(complaints)::bigint as complaints,
        count(*) filter (where is_reached) as unique_delivered,
        count(*) filter (where has_opened) as unique_human_opens
    from recipients
    group by recipient_domain
)

select
    *,
    round(delivered::numeric / nullif(sends, 0), 6) as delivery_rate,
    round(hard_bounces::numeric / nullif(sends, 0), 6) as hard_bounce_rate,
    round(soft_bounces::numeric / nullif(sends, 0), 6) as soft_bounce_rate,
    round(block_bounces::numeric / nullif(sends, 0), 6) as block_rate,
    round(complaints::numeric / nullif(delivered, 0), 6) as complaint_rate,
    round(unique_human_opens::numeric / nullif(unique_delivered, 0), 6) as human_open_rate,
    count(*) over () as number_of_rows
from counted
order by sends desc, recipient_domain asc
limit 20
