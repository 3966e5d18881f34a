-- Which campaigns of the last 90 days earned most per thousand delivered messages?
with recent as (
    select channel, campaign_id, last_sent_at
    from {{ ref('campaign_performance') }}
    where last_sent_at >= now() - interval '90 days'
)

select
    earned.campaign_name,
    earned.channel,
    earned.conversion_name,
    earned.currency,
    earned.delivered,
    round(earned.conversions, 1) as conversions,
    round(earned.revenue, 2) as revenue,
    round(earned.revenue_per_thousand, 2) as revenue_per_thousand
from {{ ref('campaign_conversions') }} as earned
inner join recent on recent.channel = earned.channel and recent.campaign_id = earned.campaign_id
where earned.model = '{{ var("primary_attribution_model") }}'
order by earned.revenue_per_thousand desc nulls last, earned.campaign_id
limit 20
