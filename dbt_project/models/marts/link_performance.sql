{{ config(
    unique_key=['channel', 'campaign_id', 'link'],
) }}
{% call changed_keys() %}
    -- The share of a link changes with each click on any link of the campaign.
    select channel, campaign_id, link
    from {{ changes_of('int_clicks') }} as clicks
    union all
    select present.channel, present.campaign_id, present.link
    from {{ this }} as present
    inner join (select distinct channel, campaign_id from {{ changes_of('int_clicks') }} as clicks) as clicked
        on clicked.channel = present.channel and clicked.campaign_id = present.campaign_id
    union all
    select channel, campaign_id, link
    from {{ this }} as present
    where campaign_id = any(array({{ renamed('campaign') }}))
{% endcall %}

with recipients as (
    select
        sign,
        channel,
        campaign_id,
        link,
        recipient,
        count(*) as clicks,
        count(*) filter (where not is_machine) as human_clicks
    from {{ rows_before_and_after('int_clicks', ['recipient', 'campaign_id']) }} as clicks
    group by sign, channel, campaign_id, link, recipient
),

differences as (
    select
        channel,
        campaign_id,
        link,
        sum(sign * clicks) as clicks,
        sum(sign * human_clicks) as human_clicks,
        sum(sign) as unique_clicks,
        sum(case when human_clicks > 0 then sign else 0 end) as unique_human_clicks
    from recipients
    group by channel, campaign_id, link
    /*+ union all
    select channel, campaign_id, link, clicks, human_clicks, unique_clicks, unique_human_clicks
    from changed
    inner join {{ this }} as present using (channel, campaign_id, link) +*/
),

totals as (
    select
        channel,
        campaign_id,
        link,
        sum(clicks)::bigint as clicks,
        sum(human_clicks)::bigint as human_clicks,
        sum(unique_clicks)::bigint as unique_clicks,
        sum(unique_human_clicks)::bigint as unique_human_clicks
    from differences
    group by channel, campaign_id, link
    having sum(clicks) > 0
),

shared as (
    select *, sum(human_clicks) over (partition by channel, campaign_id) as human_clicks_of_campaign
    from totals
)

select
    channel,
    campaign_id,
    link,
    {{ latest_name('campaign_name', 'campaign_id') }} as campaign_name,
    clicks,
    human_clicks,
    unique_clicks,
    unique_human_clicks,
    {%- for name, function in {'first_clicked_at': 'min', 'last_clicked_at': 'max'}.items() %}
    (
        select {{ function }}(clicks.occurred_at)
        from {{ ref('int_clicks') }} as clicks
        where clicks.channel = shared.channel and clicks.campaign_id = shared.campaign_id and clicks.link = shared.link
    ) as {{ name }},
    {%- endfor %}
    {{ rate('human_clicks', 'human_clicks_of_campaign') }} as share_of_human_clicks
from shared
