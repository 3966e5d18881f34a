-- The conversions attributed to the period's messages, by campaign. Each currency is apart, because nothing converts one
-- into another.
with delivered as (
    select
        channel,
        coalesce(campaign_id, 0) as campaign_id,
        sum(delivered)::bigint as delivered
    from %(marts)s.messages
    where day between %(first_day)s and %(last_day)s
    group by channel, coalesce(campaign_id, 0)
),

credited as (
    select
        attributions.conversion_name,
        attributions.currency,
        attributions.channel,
        attributions.campaign_id,
        sum(attributions.credit) as conversions,
        coalesce(sum(attributions.value), 0) as revenue,
        count(distinct coalesce(conversions.user_key, conversions.conversion_id)) as converting_users
    from %(marts)s.attributions
    inner join %(marts)s.conversions
        on
            conversions.conversion_name = attributions.conversion_name
            and conversions.conversion_id = attributions.conversion_id
    where attributions.model = %(model)s and attributions.message_day between %(first_day)s and %(last_day)s
    group by attributions.conversion_name, attributions.currency, attributions.channel, attributions.campaign_id
)

select
    credited.*,
    campaigns.campaign_name,
    delivered.delivered,
    round(credited.revenue * 1000 / nullif(delivered.delivered, 0), 6) as revenue_per_thousand,
    count(*) over () as number_of_rows
from credited
left join delivered on delivered.channel = credited.channel and delivered.campaign_id = credited.campaign_id
left join %(marts)s.campaign_performance as campaigns
    on campaigns.channel = credited.channel and campaigns.campaign_id = credited.campaign_id
order by
    credited.conversion_name asc,
    sum(credited.conversions) over (partition by credited.conversion_name, credited.currency) desc,
    credited.currency asc,
    credited.revenue desc,
    credited.campaign_id asc,
    credited.channel asc
limit 300
