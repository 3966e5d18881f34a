{{ config(
    unique_key=['event', 'id'],
    meta={'indexes': {'person': '(user_key, campaign_id, occurred_at)'}},
) }}
{% call changed_keys() %}
    select event, id
    from {{ changes_of('int_arrivals') }} as arrivals
{% endcall %}

with sends as (
    {{ collected_events(types=['send']) }}
),

cleaned as (
    select
        event,
        id,
        channel,
        {{ occurred_at('created_at', '"timestamp"') }} as occurred_at,
        {{ text_value('message_id') }} as message_id,
        nullif(campaign_id, 0) as campaign_id,
        {{ text_value('user_id') }} as user_id,
        {{ person_email('email', 'context_traits_email', 'anonymous_id') }} as email,
        {{ text_value('anonymous_id') }} as anonymous_id
    from sends
),

keyed as (
    select
        *,
        {{ person_key('user_id', 'email', "'a:' || " ~ short_text('anonymous_id')) }} as user_key
    from cleaned
)

select
    event,
    id,
    channel,
    occurred_at,
    campaign_id,
    user_key,
    {{ send_key('message_id', 'channel', 'campaign_id', 'occurred_at', 'user_key') }} as message_key
from keyed
where campaign_id is not null and user_key is not null
