-- Did a variant win, or is it chance? The human click rate of each variant, with its 95 % Wilson interval.
-- A variant has won if its interval lies above those of all others.
with variants as (
    select
        experiment_id,
        channel,
        template_id,
        max(template_name) as template_name,
        sum(unique_delivered) as delivered,
        sum(unique_human_clicks) as clicked
    from {{ ref('experiment_performance') }}
    group by experiment_id, channel, template_id
),

rates as (
    select *, clicked::numeric / delivered as rate, 1.96 as z
    from variants
    where delivered > 0
),

intervals as (
    select
        *,
        (rate + z * z / (2 * delivered)) / (1 + z * z / delivered) as center,
        z * sqrt(rate * (1 - rate) / delivered + z * z / (4 * delivered * delivered)) / (1 + z * z / delivered) as half_width
    from rates
)

select
    experiment_id,
    channel,
    template_id,
    template_name,
    delivered,
    clicked,
    round(rate, 4) as human_click_rate,
    round(center - half_width, 4) as low,
    round(center + half_width, 4) as high,
    center - half_width > coalesce(
        max(center + half_width) over (
            partition by experiment_id, channel order by rate rows between unbounded preceding and 1 preceding
        ),
        1
    ) and rate = max(rate) over (partition by experiment_id, channel) as has_won
from intervals
order by experiment_id, channel, rate desc
