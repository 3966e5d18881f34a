{{ config(
    unique_key=['user_key', 'target_type', 'target_id', 'valid_from'],
) }}
{% call changed_keys() %}
    select periods.*
    from (
        select distinct user_key, target_type, target_id from {{ changes_of('int_subscription_events') }} as events
    ) as touched
    cross join lateral (
        select user_key, target_type, target_id, valid_from
        from {{ this }} as present
        where
            present.user_key = touched.user_key
            and present.target_type = touched.target_type
            and present.target_id = touched.target_id
        offset 0
    ) as periods
{% endcall %}

with events as (
    select events.*
    from /*-*/ {{ ref('int_subscription_events') }} /*-*/ /*+ (
        select distinct user_key, target_type, target_id from {{ changes_of('int_subscription_events') }} as events
    ) as touched
    cross join lateral (
        select *
        from {{ ref('int_subscription_events') }} as stored
        where
            stored.user_key = touched.user_key
            and stored.target_type = touched.target_type
            and stored.target_id = touched.target_id
        offset 0
    ) +*/ as events
),

-- Of the events of one moment the last counts, and an unsubscribe comes after a subscribe.
moments as (
    select distinct on (user_key, target_type, target_id, occurred_at) *
    from events
    order by user_key, target_type, target_id, occurred_at, state = 'unsubscribed' desc, id collate "C" desc
),

compared as (
    select
        *,
        lag(state) over (partition by user_key, target_type, target_id order by occurred_at) as state_before
    from moments
),

periods as (
    select *
    from compared
    where state_before is distinct from state
)

select
    user_key,
    target_type,
    target_id,
    occurred_at as valid_from,
    lead(occurred_at) over (partition by user_key, target_type, target_id order by occurred_at) as valid_to,
    state,
    source,
    id as event_id,
    campaign_id
from periods
