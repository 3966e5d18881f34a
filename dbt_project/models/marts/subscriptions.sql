{{ config(
    unique_key=['user_key', 'target_type', 'target_id'],
) }}
{% call changed_keys() %}
    select user_key, target_type, target_id
    from {{ changes_of('int_subscription_events') }} as events
{% endcall %}

with
{%- for name, mart in {'events': 'int_subscription_events', 'periods': 'subscription_history'}.items() %}
{{ name }} as (
    select rows.*
    from /*-*/ {{ ref(mart) }} /*-*/ /*+ changed
    cross join lateral (
        select *
        from {{ ref(mart) }} as stored
        where
            stored.user_key = changed.user_key
            and stored.target_type = changed.target_type
            and stored.target_id = changed.target_id
        offset 0
    ) +*/ as rows
),
{%- endfor %}

counted as (
    select
        user_key,
        target_type,
        target_id,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at,
        count(*) as events
    from events
    group by user_key, target_type, target_id
),

changed_states as (
    select user_key, target_type, target_id, count(*) - 1 as changes
    from periods
    group by user_key, target_type, target_id
)

select
    user_key,
    target_type,
    target_id,
    periods.state,
    periods.valid_from as since,
    periods.source,
    periods.campaign_id,
    counted.first_event_at,
    counted.last_event_at,
    counted.events,
    changed_states.changes
from periods
inner join counted using (user_key, target_type, target_id)
inner join changed_states using (user_key, target_type, target_id)
where periods.valid_to is null
