select
    performance.campaign_name,
    performance.channel,
    performance.sends as sent,
    performance.unique_human_opens as opened,
    performance.unique_human_clicks as clicked,
    round(earned.revenue, 2) as revenue_usd
from iterable_marts.campaign_performance as performance
left join iterable_marts.campaign_conversions as earned
    on
        performance.channel = earned.channel
        and performance.campaign_id = earned.campaign_id
        and earned.model = 'last_click'
        and earned.currency = 'USD'
order by revenue_usd desc nulls last, performance.campaign_id asc
limit 5
