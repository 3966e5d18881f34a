-- The campaigns with messages in the period, in descending order of sends; 0 stands for messages without a campaign.
with recipients as (
    select
        channel,
        coalesce(campaign_id, 0) as campaign_id,
        recipient_key,
        sum(sends) as sends,
        sum(delivered) as delivered,
        bool_or(delivered > 0) as is_reached,
        bool_or(human_opens > 0) as has_opened,
        bool_or(human_clicks > 0) as has_clicked,
        bool_or(recipient_unsubscribes > 0) as has_unsubscribed,
        max(sent_at) as last_sent_at
    from %(marts)s.messages
    where day between %(first_day)s and %(last_day)s
    group by channel, coalesce(campaign_id, 0), recipient_key
),

counted as (
    select
        channel,
        campaign_id,
        sum(sends)::bigint as sends,
        sum(delivered)::bigint as delivered,
        count(*) filter (where is_reached) as unique_delivered,
        count(*) filter (where has_opened) as unique_human_opens,
        count(*) filter (where has_clicked) as unique_human_clicks,
        count(*) filter (where has_unsubscribed) as unique_recipient_unsubscribes,
        max(last_sent_at) as last_sent_at
    from recipients
    group by channel, campaign_id
)

select
    counted.*,
    campaigns.campaign_name,
    round(counted.delivered::numeric / nullif(counted.sends, 0), 6) as delivery_rate,
    case
        when counted.channel in ('email', 'push', 'in_app')
            then round(counted.unique_human_opens::numeric / nullif(counted.unique_delivered, 0), 6)
    end as human_open_rate,
    case
        when counted.channel in ('email', 'web_push')
            then round(counted.unique_human_clicks::numeric / nullif(counted.unique_delivered, 0), 6)
        when counted.channel = 'sms' then round(counted.unique_human_clicks::numeric / nullif(counted.delivered, 0), 6)
        when counted.channel = 'in_app'
            then round(counted.unique_human_clicks::numeric / nullif(counted.unique_human_opens, 0), 6)
    end as human_click_rate,
    round(
        counted.unique_recipient_unsubscribes::numeric / nullif(counted.unique_delivered, 0), 6
    ) as recipient_unsubscribe_rate,
    count(*) over () as number_of_rows
from counted
left join %(marts)s.campaign_performance as campaigns
    on campaigns.channel = counted.channel and campaigns.campaign_id = counted.campaign_id
order by counted.sends desc, counted.campaign_id asc, counted.channel asc
limit 300
