{{ config(
    unique_key=['channel', 'day'],
    meta={'variables': ['marts_time_zone', 'machine_proxies']},
) }}
{%- set counts = [
    'events', 'sends', 'receipts', 'bounces', 'opens', 'human_opens', 'clicks', 'human_clicks', 'complaints', 'unsubscribes',
    'subscribes', 'preference_visits', 'uninstalls', 'replies', 'skips', 'reached_users', 'engaged_users',
] %}
{% call changed_keys() %}
    select coalesce(channel, 'none') as channel, day
    from {{ changes_of('events') }} as events
{% endcall %}

with differences as (
    select
        coalesce(channel, 'none') as channel,
        day,
        sum(sign) as events,
        sum(sign) filter (where type = 'send') as sends,
        sum(sign) filter (where type = 'receipt') as receipts,
        sum(sign) filter (where type = 'bounce') as bounces,
        sum(sign) filter (where type = 'open') as opens,
        sum(sign) filter (where type = 'open' and not is_machine) as human_opens,
        sum(sign) filter (where type = 'click') as clicks,
        sum(sign) filter (where type = 'click' and not is_machine) as human_clicks,
        sum(sign) filter (where type = 'complaint') as complaints,
        sum(sign) filter (where type = 'unsubscribe') as unsubscribes,
        sum(sign) filter (where type = 'subscribe') as subscribes,
        sum(sign) filter (where type = 'preference_visit') as preference_visits,
        sum(sign) filter (where type = 'uninstall') as uninstalls,
        sum(sign) filter (where type = 'reply') as replies,
        sum(sign) filter (where type = 'skip') as skips,
        0 as reached_users,
        0 as engaged_users
    from {{ signed_rows('events') }} as events
    group by 1, day
    union all
    select
        channel,
        day,
        {{ "0, " * 15 }}
        sum(sign) filter (where sends > 0) as reached_users,
        sum(sign) filter (where human_opens + human_clicks + replies > 0) as engaged_users
    from {{ signed_rows('int_user_days') }} as user_days
    group by channel, day
    /*+ union all
    select channel, day, {{ counts | join(", ") }}
    from changed
    inner join {{ this }} as present using (channel, day) +*/
)

select
    channel,
    day,
    {%- for name in counts %}
    coalesce(sum({{ name }}), 0)::bigint as {{ name }}{{ "," if not loop.last }}
    {%- endfor %}
from differences
group by channel, day
having sum(events) > 0
