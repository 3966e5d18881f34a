{{ config(
    unique_key=['channel', 'campaign_id', 'recipient_key'],
    meta={'variables': ['primary_attribution_model']},
) }}
{% call changed_keys() %}
    select channel, campaign_id, recipient_key
    from {{ changes_of('campaign_recipients') }} as recipients
    union all
    select messages.*
    from (select distinct message_key from {{ changes_of('attributions') }} as attributions) as attributions
    cross join lateral (
        select channel, coalesce(campaign_id, 0) as campaign_id, recipient_key
        from {{ ref('messages') }} as stored
        where stored.message_key = attributions.message_key
        offset 0
    ) as messages
{% endcall %}

with recipients as (
    select recipients.*
    from /*-*/ {{ ref('campaign_recipients') }} /*-*/ /*+ changed
    cross join lateral (
        select *
        from {{ ref('campaign_recipients') }} as stored
        where
            stored.channel = changed.channel
            and stored.campaign_id = changed.campaign_id
            and stored.recipient_key = changed.recipient_key
        offset 0
    ) +*/ as recipients
)

select channel, campaign_id, recipient_key
from recipients
where
    {{ funnel_step() }} = 4
    and exists (
        select from {{ ref('messages') }} as messages
        inner join {{ ref('attributions') }} as attributions on attributions.message_key = messages.message_key
        where
            messages.recipient_key = recipients.recipient_key
            and coalesce(messages.campaign_id, 0) = recipients.campaign_id
            and messages.channel = recipients.channel
            and attributions.model = {{ string_literal(var('primary_attribution_model')) }}
    )
