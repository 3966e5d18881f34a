{{ config(
    unique_key=['message_key'],
    meta={
        'variables': ['marts_time_zone', 'transactional_channel_ids', 'transactional_message_type_ids'],
        'indexes': {
            'recipient_campaign': '(recipient_key, coalesce(campaign_id, 0))',
            'recipient_workflow': '(recipient_key, workflow_id) where workflow_id is not null',
            'recipient_day': "(recipient_key, day) where channel = 'email'",
            'day': '(day)',
            'campaign': '(coalesce(campaign_id, 0), sent_at)',
            'workflow': '(workflow_id, sent_at) where workflow_id is not null',
            'user': 'using hash (user_id)',
            'email': 'using hash (email)',
        },
    },
) }}
{% call changed_keys() %}
    select message_key
    from {{ changes_of('events') }} as events
    where message_key is not null
{% endcall %}

{%- set order = "type <> 'send', occurred_at, event collate \"C\", id collate \"C\"" %}

with events as (
    select *
    from {{ rows_of_changed('events', 'message_key') }} as events
    where message_key is not null
),

pooled as (
    select
        message_key,
        {%- for column in [
            'message_id', 'channel', 'campaign_id', 'campaign_name', 'template_id', 'template_name', 'workflow_id', 'workflow_name',
            'experiment_id', 'channel_id', 'message_type_id', 'user_id', 'email', 'user_key',
        ] %}
        raw.first_of({{ column }} order by {{ order }}) as {{ column }},
        {%- endfor %}
        min(occurred_at) filter (where type = 'send') as sent_at,
        min(occurred_at) filter (where type = 'receipt') as first_receipt_at,
        min(occurred_at) filter (where type = 'open') as first_open_at,
        max(occurred_at) filter (where type = 'open') as last_open_at,
        min(occurred_at) filter (where type = 'open' and not is_machine) as first_human_open_at,
        max(occurred_at) filter (where type = 'open' and not is_machine) as last_human_open_at,
        min(occurred_at) filter (where type = 'click') as first_click_at,
        max(occurred_at) filter (where type = 'click') as last_click_at,
        min(occurred_at) filter (where type = 'click' and not is_machine) as first_human_click_at,
        max(occurred_at) filter (where type = 'click' and not is_machine) as last_human_click_at,
        min(occurred_at) filter (where type = 'bounce') as bounced_at,
        min(occurred_at) filter (where type = 'complaint') as complained_at,
        min(occurred_at) filter (where type = 'unsubscribe') as unsubscribed_at,
        count(*) filter (where type = 'send') as sends,
        count(*) filter (where type = 'receipt') as receipts,
        count(*) filter (where type = 'bounce') as bounces,
        count(*) filter (where bounce_class = 'hard') as hard_bounces,
        count(*) filter (where bounce_class = 'block') as block_bounces,
        count(*) filter (where bounce_class = 'soft') as soft_bounces,
        count(*) filter (where bounce_class = 'other') as other_bounces,
        count(*) filter (where type = 'open') as opens,
        count(*) filter (where type = 'open' and not is_machine) as human_opens,
        count(*) filter (where type = 'click') as clicks,
        count(*) filter (where type = 'click' and not is_machine) as human_clicks,
        count(*) filter (where type = 'complaint') as complaints,
        count(*) filter (where type = 'unsubscribe') as unsubscribes,
        count(*) filter (where unsubscribe_class = 'recipient') as recipient_unsubscribes,
        count(*) filter (where type = 'preference_visit') as preference_visits,
        count(*) filter (where type = 'uninstall') as uninstalls,
        count(*) filter (where type = 'reply') as replies,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at
    from events
    group by message_key
),

named as (
    select
        *,
        {{ person_key('user_id', 'email', 'user_key') }} as pooled_user_key
    from pooled
)

select
    message_key,
    message_id,
    coalesce(channel, 'email') as channel,
    campaign_id,
    campaign_name,
    template_id,
    template_name,
    workflow_id,
    workflow_name,
    experiment_id,
    channel_id,
    message_type_id,
    user_id,
    email,
    pooled_user_key as user_key,
    coalesce(pooled_user_key, message_key) as recipient_key,
    nullif(substring(email from '@([^@]*)$'), '') as recipient_domain,
    (
        coalesce({{ is_one_of('channel_id', list_variable('transactional_channel_ids')) }}, false)
        or coalesce({{ is_one_of('message_type_id', list_variable('transactional_message_type_ids')) }}, false)
    ) as is_transactional,
    sends > 0 as has_send,
    sent_at,
    first_receipt_at,
    first_open_at,
    last_open_at,
    first_human_open_at,
    last_human_open_at,
    first_click_at,
    last_click_at,
    first_human_click_at,
    last_human_click_at,
    bounced_at,
    complained_at,
    unsubscribed_at,
    case
        when hard_bounces > 0 then 'hard'
        when block_bounces > 0 then 'block'
        when soft_bounces > 0 then 'soft'
        when other_bounces > 0 then 'other'
    end as bounce_class,
    sends,
    receipts,
    bounces,
    hard_bounces,
    block_bounces,
    soft_bounces,
    other_bounces,
    opens,
    human_opens,
    clicks,
    human_clicks,
    complaints,
    unsubscribes,
    recipient_unsubscribes,
    preference_visits,
    uninstalls,
    replies,
    case coalesce(channel, 'email') when 'in_app' then receipts else greatest(sends - bounces, 0) end as delivered,
    {{ seconds_between('sent_at', 'first_human_open_at') }} as seconds_to_first_open,
    {{ seconds_between('sent_at', 'first_human_click_at') }} as seconds_to_first_click,
    first_event_at,
    last_event_at,
    {{ local_day('coalesce(sent_at, first_event_at)') }} as day
from named
