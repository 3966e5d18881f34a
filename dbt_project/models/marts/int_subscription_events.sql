{{ config(
    unique_key=['event', 'id', 'target_type', 'target_id'],
    meta={'indexes': {'target': '(user_key, target_type, target_id)'}},
) }}
{%- set ids = {'channel_ids': 'text', 'message_type_ids': 'text', 'email_list_ids': 'text', 'user_list_ids': 'text', 'email_list_id': 'bigint'} %}
{% call changed_keys() %}
    select targets.*
    from (select distinct event, id from {{ changes_of('int_arrivals') }} as arrivals) as arrivals
    cross join lateral (
        select event, id, target_type, target_id
        from {{ this }} as present
        where present.event = arrivals.event and present.id = arrivals.id
        offset 0
    ) as targets
{% endcall %}

with served as (
    {%- for collection, source in {'subscribed': 'signup_source', 'unsubscribed': 'unsub_source'}.items() %}
    {%- set columns = {source: 'text'} -%}{%- do columns.update(ids) %}
    select
        '{{ collection }}'::text as event,
        id,
        '{{ collection }}'::text as state,
        {{ text_value(source) }} as source,
        {{ ids.keys() | join(", ") }}
    from (
    {{ served_rows(collection, columns, ids="select id from " ~ changes_of('int_arrivals') ~ " as arrivals where event = '" ~ collection ~ "'") }}
    ) as {{ collection }}
    {{- " union all" if not loop.last }}
    {%- endfor %}
),

-- The lists, channels and message types that an event names.
named as (
    select distinct served.event, served.id, listed.target_type, ids.id as target_id
    from served
    cross join lateral (
        values
        ('channel', served.channel_ids),
        ('message_type', served.message_type_ids),
        ('list', served.email_list_ids),
        ('list', served.user_list_ids),
        ('list', nullif(served.email_list_id, 0)::text)
    ) as listed (target_type, written)
    cross join lateral raw.read_ids(listed.written) as ids (id)
),

subscriptions as (
    select served.state, served.source, events.*
    from served
    inner join lateral (
        select *
        from {{ ref('events') }} as stored
        where stored.event = served.event and stored.id = served.id
        offset 0
    ) as events on true
    where events.user_key is not null
)

select
    subscriptions.event,
    subscriptions.id,
    coalesce(
        named.target_type,
        case
            when subscriptions.channel_id is not null then 'channel'
            when subscriptions.message_type_id is not null then 'message_type'
            else 'unspecified'
        end
    ) as target_type,
    coalesce(named.target_id, subscriptions.channel_id, subscriptions.message_type_id, 0) as target_id,
    subscriptions.user_key,
    subscriptions.occurred_at,
    subscriptions.state,
    subscriptions.source,
    subscriptions.campaign_id
from subscriptions
left join named on named.event = subscriptions.event and named.id = subscriptions.id
