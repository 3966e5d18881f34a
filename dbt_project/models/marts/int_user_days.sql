{{ config(
    unique_key=['user_key', 'channel', 'day'],
    meta={'variables': ['marts_time_zone', 'machine_proxies']},
) }}
{% call changed_keys() %}
    select user_key, coalesce(channel, 'none') as channel, day
    from {{ changes_of('events') }} as events
    where user_key is not null
{% endcall %}

{%- set last = "occurred_at desc, event collate \"C\" desc, id collate \"C\" desc" %}

with events as (
    select events.*, coalesce(events.channel, 'none') as own_channel
    from /*-*/ {{ ref('events') }} /*-*/ /*+ changed
    cross join lateral (
        select *
        from {{ ref('events') }} as stored
        where
            stored.user_key = changed.user_key
            and stored.day = changed.day
            and coalesce(stored.channel, 'none') = changed.channel
        offset 0
    ) +*/ as events
    where events.user_key is not null
)

select
    user_key,
    own_channel as channel,
    day,
    max(user_id) as user_id,
    raw.first_of(email order by {{ last }}) filter (where email is not null) as email,
    raw.first_of(occurred_at order by {{ last }}) filter (where email is not null) as email_at,
    raw.first_of(event order by {{ last }}) filter (where email is not null) as email_event,
    raw.first_of(id order by {{ last }}) filter (where email is not null) as email_event_id,
    count(*) as events,
    count(*) filter (where type = 'send') as sends,
    count(*) filter (where type = 'open' and not is_machine) as human_opens,
    count(*) filter (where type = 'click' and not is_machine) as human_clicks,
    count(*) filter (where type = 'reply') as replies,
    min(occurred_at) filter (where type = 'send') as first_sent_at,
    max(occurred_at) filter (where type = 'send') as last_sent_at,
    max(occurred_at) filter (where type = 'open' and not is_machine) as last_open_at,
    max(occurred_at) filter (where type = 'click' and not is_machine) as last_click_at
from events
group by user_key, own_channel, day
