{{ config(
    unique_key=['event', 'id'],
    meta={
        'variables': ['marts_time_zone', 'machine_proxies'],
        'indexes': {
            'message': '(message_key)',
            'person': '(user_key, day)',
            'without_message': "(user_key, campaign_id) where message_id is null and campaign_id is not null and type not in ('send', 'skip', 'subscribe')",
            'campaign': '(campaign_id)',
            'template': '(template_id)',
            'workflow': '(workflow_id)',
        },
    },
) }}
{% call changed_keys() %}
    select event, id
    from {{ changes_of('int_arrivals') }} as arrivals
    union all
    -- A send that comes late takes the events that its person and campaign have after it.
    select waiting.event, waiting.id
    from (select distinct user_key, campaign_id from {{ changes_of('int_sends') }} as sends) as sends
    cross join lateral (
        select event, id
        from {{ this }} as present
        where
            present.user_key = sends.user_key
            and present.campaign_id = sends.campaign_id
            and present.message_id is null
            and present.campaign_id is not null
            and present.type not in ('send', 'skip', 'subscribe')
        offset 0
    ) as waiting
{% endcall %}

with collected as (
    {{ collected_events() }}
),

cleaned as (
    select
        event,
        id,
        channel,
        type,
        {{ occurred_at('created_at', '"timestamp"') }} as occurred_at,
        {{ text_value('message_id') }} as message_id,
        {{ text_value('user_id') }} as user_id,
        {{ person_email('email', 'context_traits_email', 'anonymous_id') }} as email,
        {{ text_value('anonymous_id') }} as anonymous_id,
        nullif(campaign_id, 0) as campaign_id,
        {{ text_value('campaign_name') }} as campaign_name,
        nullif(template_id, 0) as template_id,
        {{ text_value('template_name') }} as template_name,
        nullif(workflow_id, 0) as workflow_id,
        {{ text_value('workflow_name') }} as workflow_name,
        nullif(experiment_id, 0) as experiment_id,
        nullif(channel_id, 0) as channel_id,
        nullif(message_type_id, 0) as message_type_id,
        {{ is_machine('is_bot', 'proxy_source') }} as is_machine,
        case when type = 'bounce' then {{ bounce_class('recipient_state') }} end as bounce_class,
        case when type = 'unsubscribe' then {{ unsubscribe_class('unsub_source') }} end as unsubscribe_class,
        {{ without_parameters('link_text') }} as link_path,
        {{ text_value('reason') }} as skip_reason
    from collected
),

keyed as (
    select
        *,
        {{ scheme_and_host('link_path') }} as link_host,
        {{ person_key('user_id', 'email', "'a:' || " ~ short_text('anonymous_id')) }} as user_key
    from cleaned
),

-- An event without a message id belongs to the last send of its campaign to its person, at or before the event.
assigned as (
    select
        keyed.*,
        case
            when keyed.type in ('skip', 'subscribe') then null
            when keyed.type = 'send' or keyed.message_id is not null
                then {{ send_key('keyed.message_id', 'keyed.channel', 'keyed.campaign_id', 'keyed.occurred_at', 'keyed.user_key') }}
            else coalesce(
                last_send.message_key,
                'f:' || coalesce(keyed.channel, 'email') || ':' || keyed.campaign_id || ':-:' || keyed.user_key
            )
        end as message_key
    from keyed
    left join lateral (
        select sends.message_key
        from {{ ref('int_sends') }} as sends
        where
            keyed.message_id is null
            and keyed.type not in ('send', 'skip', 'subscribe')
            and sends.user_key = keyed.user_key
            and sends.campaign_id = keyed.campaign_id
            and (sends.channel = keyed.channel or keyed.channel is null)
            and sends.occurred_at <= keyed.occurred_at
        order by sends.occurred_at desc, sends.message_key collate "C" desc
        limit 1
    ) as last_send on true
)

select
    event,
    id,
    channel,
    type,
    occurred_at,
    {{ local_day('occurred_at') }} as day,
    message_key,
    message_id,
    user_key,
    user_id,
    email,
    campaign_id,
    campaign_name,
    template_id,
    template_name,
    workflow_id,
    workflow_name,
    experiment_id,
    channel_id,
    message_type_id,
    is_machine,
    bounce_class,
    unsubscribe_class,
    {{ short_text('(lower(link_host) || substr(link_path, 1 + length(link_host)))') }} as link,
    skip_reason
from assigned
