-- How long until half of the recipients who open have opened, by campaign?
select
    channel,
    campaign_id,
    max(campaign_name) as campaign_name,
    count(*) as opened_messages,
    percentile_disc(0.5) within group (order by seconds_to_first_open) * interval '1 second' as half_have_opened,
    percentile_disc(0.9) within group (order by seconds_to_first_open) * interval '1 second' as nine_of_ten_have_opened
from {{ ref('messages') }}
where seconds_to_first_open is not null
group by channel, campaign_id
order by half_have_opened, channel, campaign_id
