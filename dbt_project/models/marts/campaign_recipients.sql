{{ config(
    unique_key=['channel', 'campaign_id', 'recipient_key'],
) }}
{% call changed_keys() %}
    select channel, coalesce(campaign_id, 0) as campaign_id, recipient_key
    from {{ changes_of('messages') }} as messages
{% endcall %}

with messages as (
    select messages.*, coalesce(messages.campaign_id, 0) as campaign
    from /*-*/ {{ ref('messages') }} /*-*/ /*+ changed
    cross join lateral (
        select *
        from {{ ref('messages') }} as stored
        where
            stored.recipient_key = changed.recipient_key
            and coalesce(stored.campaign_id, 0) = changed.campaign_id
            and stored.channel = changed.channel
        offset 0
    ) +*/ as messages
)

select
    channel,
    campaign as campaign_id,
    recipient_key,
    max(user_key) as user_key,
    raw.first_of(user_id order by first_event_at desc, message_key collate "C" desc) filter (where user_id is not null) as user_id,
    raw.first_of(email order by first_event_at desc, message_key collate "C" desc) filter (where email is not null) as email,
    {{- sum_messages(message_sums()) }},
    min(sent_at) as first_sent_at,
    max(sent_at) as last_sent_at,
    min(first_human_open_at) as first_human_open_at,
    min(first_human_click_at) as first_human_click_at,
    max(last_human_open_at) as last_human_open_at,
    max(last_human_click_at) as last_human_click_at
from messages
group by channel, campaign, recipient_key
