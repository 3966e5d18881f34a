-- The conversions attributed to the messages of the period and of the period before, by currency.
with periods (period, first_day, last_day) as (
    values
    ('current', %(first_day)s, %(last_day)s),
    ('before', %(first_day_before)s, %(last_day_before)s)
)

select
    periods.period,
    attributions.conversion_name,
    attributions.currency,
    sum(attributions.credit) as conversions,
    coalesce(sum(attributions.value), 0) as revenue
from periods
inner join %(marts)s.attributions on attributions.message_day between periods.first_day and periods.last_day
where attributions.model = %(model)s
group by periods.period, attributions.conversion_name, attributions.currency
order by periods.period desc, revenue desc, attributions.conversion_name asc, attributions.currency asc
