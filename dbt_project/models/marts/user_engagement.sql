{{ config(
    materialized='mart_view',
    meta={'variables': ['marts_time_zone', 'engagement_active_days', 'engagement_lapsing_days', 'as_of_date']},
) }}
with as_of as (
    select {{ "'" ~ var('as_of_date') ~ "'::date" if var('as_of_date') else local_day('now()') }} as as_of_date
),

people as (
    select
        user_key,
        as_of_date,
        max(user_id) as user_id,
        (array_agg(email order by email_at desc, email_event collate "C" desc, email_event_id collate "C" desc)
            filter (where email is not null))[1] as email,
        min(first_sent_at) as first_sent_at,
        max(last_sent_at) as last_sent_at,
        max(last_open_at) as last_open_at,
        max(last_click_at) as last_click_at,
        greatest(max(last_open_at), max(last_click_at)) as last_engaged_at
        {%- for channel in ['email', 'sms', 'push', 'web_push', 'in_app'] %},
        max(last_sent_at) filter (where channel = '{{ channel }}') as {{ channel }}_last_sent_at,
        max(last_open_at) filter (where channel = '{{ channel }}') as {{ channel }}_last_open_at,
        max(last_click_at) filter (where channel = '{{ channel }}') as {{ channel }}_last_click_at
        {%- endfor %}
        {%- for days in [7, 30, 90] %}
        {%- for name, count in {'sends': 'sends', 'opens': 'human_opens', 'clicks': 'human_clicks'}.items() %},
        coalesce(sum({{ count }}) filter (where day > as_of_date - {{ days }} and day <= as_of_date), 0)::bigint as {{ name }}_{{ days }}d
        {%- endfor %}
        {%- endfor %}
    from {{ ref('int_user_days') }} as user_days
    cross join as_of
    group by user_key, as_of_date
),

aged as (
    select
        *,
        as_of_date - {{ local_day('last_engaged_at') }} as days_since_engaged,
        as_of_date - {{ local_day('first_sent_at') }} as days_since_first_send
    from people
)

select
    user_key,
    user_id,
    email,
    first_sent_at,
    last_sent_at,
    last_open_at,
    last_click_at,
    last_engaged_at,
    {%- for channel in ['email', 'sms', 'push', 'web_push', 'in_app'] %}
    {{ channel }}_last_sent_at,
    {{ channel }}_last_open_at,
    {{ channel }}_last_click_at,
    {%- endfor %}
    {%- for days in [7, 30, 90] %}
    sends_{{ days }}d,
    opens_{{ days }}d,
    clicks_{{ days }}d,
    {%- endfor %}
    as_of_date,
    case
        when days_since_engaged <= {{ var('engagement_active_days') }} then 'active'
        when days_since_engaged <= {{ var('engagement_lapsing_days') }} then 'lapsing'
        when days_since_engaged is not null then 'dormant'
        when days_since_first_send <= {{ var('engagement_active_days') }} then 'new'
        when days_since_first_send is not null then 'unengaged'
        else 'unreached'
    end as engagement_level
from aged
