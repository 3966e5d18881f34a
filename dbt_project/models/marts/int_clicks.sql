{{ config(
    unique_key=['event', 'id'],
    meta={'indexes': {
        'recipient': '(recipient, campaign_id)',
        'link': '(channel, campaign_id, link, occurred_at)',
    }},
) }}
{% call changed_keys() %}
    select event, id
    from {{ changes_of('events') }} as events
    where type = 'click'
    union all
    -- A message may get another campaign or recipient from another event.
    select clicks.event, clicks.id
    from (select distinct message_key from {{ changes_of('messages') }} as messages) as messages
    cross join lateral (
        select event, id
        from {{ ref('events') }} as events
        where events.message_key = messages.message_key and events.type = 'click'
        offset 0
    ) as clicks
{% endcall %}

with clicks as (
    select events.*
    from /*-*/ {{ ref('events') }} /*-*/ /*+ changed
    cross join lateral (
        select *
        from {{ ref('events') }} as stored
        where stored.event = changed.event and stored.id = changed.id
        offset 0
    ) +*/ as events
    where events.type = 'click'
)

select
    clicks.event,
    clicks.id,
    clicks.channel,
    coalesce(messages.campaign_id, clicks.campaign_id, 0) as campaign_id,
    coalesce(clicks.link, 'unknown') as link,
    coalesce(messages.recipient_key, clicks.user_key, clicks.id) as recipient,
    clicks.is_machine,
    clicks.occurred_at
from clicks
left join lateral (
    select campaign_id, recipient_key
    from {{ ref('messages') }} as messages
    where messages.message_key = clicks.message_key
    offset 0
) as messages on true
