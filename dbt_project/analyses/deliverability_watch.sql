-- Which domains have hard bounces, blocks or complaints at twice the rate of the four weeks before?
-- The last day with messages ends the week that is compared.
with last_day as (
    select max(day) as day from {{ ref('deliverability_daily') }}
),

periods as (
    select
        recipient_domain,
        deliverability_daily.day > last_day.day - 7 as is_recent,
        sum(sends) as sends,
        sum(hard_bounces) as hard_bounces,
        sum(block_bounces) as block_bounces,
        sum(complaints) as complaints
    from {{ ref('deliverability_daily') }} as deliverability_daily
    cross join last_day
    where deliverability_daily.day > last_day.day - 35
    group by recipient_domain, deliverability_daily.day > last_day.day - 7
),

rates as (
    select
        periods.recipient_domain,
        periods.is_recent,
        periods.sends,
        problems.problem,
        problems.events,
        problems.events::numeric / nullif(periods.sends, 0) as rate
    from periods
    cross join lateral (
        values
        ('hard bounces', periods.hard_bounces),
        ('blocks', periods.block_bounces),
        ('complaints', periods.complaints)
    ) as problems (problem, events)
)

select
    recent.recipient_domain,
    recent.problem,
    recent.sends,
    recent.events,
    round(recent.rate, 4) as rate,
    round(earlier.rate, 4) as rate_of_four_weeks_before,
    recent.events > 0 and recent.rate >= 2 * coalesce(earlier.rate, 0) as has_doubled
from rates as recent
left join rates as earlier
    on earlier.recipient_domain = recent.recipient_domain and earlier.problem = recent.problem and not earlier.is_recent
where recent.is_recent and (recent.events > 0 or earlier.events > 0)
order by has_doubled desc, recent.events desc, recent.recipient_domain, recent.problem
