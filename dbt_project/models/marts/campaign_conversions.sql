{{ config(materialized='mart_view') }}
with credited as (
    select
        attributions.model,
        attributions.conversion_name,
        attributions.channel,
        attributions.campaign_id,
        attributions.currency,
        sum(attributions.credit) as conversions,
        coalesce(sum(attributions.value), 0) as revenue,
        count(distinct coalesce(conversions.user_key, conversions.conversion_id)) as converting_users
    from {{ ref('attributions') }} as attributions
    inner join {{ ref('conversions') }} as conversions
        on
            conversions.conversion_name = attributions.conversion_name
            and conversions.conversion_id = attributions.conversion_id
    group by
        attributions.model, attributions.conversion_name, attributions.channel, attributions.campaign_id, attributions.currency
)

select
    credited.model,
    credited.conversion_name,
    credited.channel,
    credited.campaign_id,
    credited.currency,
    campaigns.campaign_name,
    credited.conversions,
    credited.revenue,
    credited.converting_users,
    coalesce(campaigns.delivered, 0) as delivered,
    coalesce(campaigns.unique_delivered, 0) as unique_delivered,
    {{ rate('credited.converting_users', 'campaigns.unique_delivered') }} as conversion_rate,
    {{ rate('credited.conversions * 1000', 'campaigns.delivered') }} as conversions_per_thousand,
    {{ rate('credited.revenue * 1000', 'campaigns.delivered') }} as revenue_per_thousand,
    {{ rate('credited.revenue', 'credited.conversions') }} as average_value
from credited
left join {{ ref('campaign_performance') }} as campaigns
    on campaigns.channel = credited.channel and campaigns.campaign_id = credited.campaign_id
