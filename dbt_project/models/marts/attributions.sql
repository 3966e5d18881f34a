{{ config(
    unique_key=['model', 'conversion_name', 'conversion_id', 'message_key'],
    meta={
        'variables': ['attribution_models', 'attribute_transactional'],
        'indexes': {'conversion': '(conversion_name, conversion_id)', 'message': '(message_key)'},
    },
) }}
{%- set touched %}
(
    select conversion_name, conversion_id
    from {{ changes_of('conversions') }} as converted
    union
    -- A person's messages have changed.
    select alike.conversion_name, alike.conversion_id
    from (
        select user_id, email
        from {{ changes_of('messages') }} as messages
        union
        select messages.user_id, messages.email
        from (select distinct message_key from {{ changes_of('events') }} as events) as events
        cross join lateral (
            select user_id, email
            from {{ ref('messages') }} as stored
            where stored.message_key = events.message_key
            offset 0
        ) as messages
    ) as people
    cross join lateral (
        select conversion_name, conversion_id from {{ ref('conversions') }} as stored where stored.user_id = people.user_id
        union all
        select conversion_name, conversion_id from {{ ref('conversions') }} as stored where stored.email = people.email
        offset 0
    ) as alike
)
{%- endset %}
{% call changed_keys() %}
    select stored.*
    from {{ touched }} as touched
    cross join lateral (
        select model, conversion_name, conversion_id, message_key
        from {{ this }} as present
        where present.conversion_name = touched.conversion_name and present.conversion_id = touched.conversion_id
        offset 0
    ) as stored
{% endcall %}

with models (model, position, touch, time_window) as (
    values
    {{ attribution_models() }}
),

converted as (
    select converted.*
    from /*-*/ {{ ref('conversions') }} /*-*/ /*+ {{ touched }} as touched
    cross join lateral (
        select *
        from {{ ref('conversions') }} as stored
        where stored.conversion_name = touched.conversion_name and stored.conversion_id = touched.conversion_id
        offset 0
    ) +*/ as converted
),

-- Two user ids with one address are two people. An address is the same person where one of both has no user id.
messages_of_person as (
    select converted.conversion_name, converted.conversion_id, messages.message_key
    from converted
    inner join {{ ref('messages') }} as messages on messages.user_id = converted.user_id
    union all
    select converted.conversion_name, converted.conversion_id, messages.message_key
    from converted
    inner join {{ ref('messages') }} as messages on messages.email = converted.email
    where messages.user_id is null or converted.user_id is null
),

touches as (
    select
        models.model,
        models.position,
        converted.conversion_name,
        converted.conversion_id,
        converted.occurred_at as converted_at,
        converted.value,
        converted.currency,
        messages.message_key,
        messages.channel,
        coalesce(messages.campaign_id, 0) as campaign_id,
        messages.day as message_day,
        events.type as touch_type,
        events.occurred_at as touched_at,
        row_number() over (
            partition by models.model, converted.conversion_name, converted.conversion_id, messages.message_key
            order by
                case when models.position = 'first' then events.occurred_at end,
                case when models.position = 'first' then events.event end collate "C",
                case when models.position = 'first' then events.id end collate "C",
                events.occurred_at desc,
                events.event collate "C" desc,
                events.id collate "C" desc
        ) as place_in_message
    from converted
    inner join messages_of_person using (conversion_name, conversion_id)
    inner join {{ ref('messages') }} as messages on messages.message_key = messages_of_person.message_key
    inner join {{ ref('events') }} as events on events.message_key = messages.message_key
    cross join models
    where
        not events.is_machine
        and case models.touch
            when 'click' then events.type = 'click' or (events.type = 'open' and events.channel = 'push')
            when 'open' then events.type in ('click', 'open')
            when 'send' then events.type = 'send' and messages.sends > messages.bounces
        end
        and events.occurred_at between converted.occurred_at - models.time_window and converted.occurred_at
        and {{ 'true' if var('attribute_transactional') else 'not messages.is_transactional' }}
),

ordered as (
    select
        *,
        row_number() over (
            partition by model, conversion_name, conversion_id
            order by touched_at, message_key collate "C"
        ) as place,
        count(*) over (partition by model, conversion_name, conversion_id) as messages
    from touches
    where place_in_message = 1
),

credited as (
    select
        *,
        case when position = 'linear' then {{ rate('1', 'messages') }} else 1 end as part,
        case when position = 'linear' then {{ rate('value', 'messages') }} else value end as part_of_value
    from ordered
    where position = 'linear' or (position = 'first' and place = 1) or (position = 'last' and place = messages)
)

select
    model,
    conversion_name,
    conversion_id,
    message_key,
    channel,
    campaign_id,
    message_day,
    touch_type,
    touched_at,
    converted_at,
    {{ seconds_between('touched_at', 'converted_at') }} as seconds_to_convert,
    -- The last message gets what rounding leaves, so that the credits sum to 1 and the values to the value.
    case when position = 'linear' and place = messages then 1 - part * (messages - 1) else part end as credit,
    case when position = 'linear' and place = messages then value - part_of_value * (messages - 1) else part_of_value end as value,
    currency
from credited
