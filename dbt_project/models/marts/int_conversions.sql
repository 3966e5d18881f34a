{{ config(
    unique_key=['conversion_name', 'conversion_id'],
    meta={
        'variables': ['marts_time_zone', 'conversion_events', 'default_currency'],
        'indexes': {
            'order': '(conversion_name, md5(order_id)) where order_id is not null',
            'arrival': '(conversion_name, arrived_at)',
        },
    },
) }}
-- depends_on: {{ ref('int_conversion_arrivals') }}
{% call changed_keys() %}
    {{ arrived_conversions() }}
{% endcall %}

with collected as (
    {{ collected_conversions() }}
),

cleaned as (
    select
        conversion_name,
        {{ short_text('conversion_id') }} as conversion_id,
        occurred_at,
        arrived_at,
        user_id,
        {{ person_email('email', 'context_traits_email', 'anonymous_id') }} as email,
        anonymous_id,
        order_id,
        value,
        currency
    from collected
    where conversion_id is not null and occurred_at is not null
),

firsts as (
    select distinct on (conversion_name, conversion_id) *
    from cleaned
    order by
        conversion_name, conversion_id, occurred_at, order_id collate "C" nulls last, value nulls last, currency collate "C" nulls last
)

select
    conversion_name,
    conversion_id,
    occurred_at,
    {{ local_day('occurred_at') }} as day,
    arrived_at,
    {{ person_key('user_id', 'email', "'a:' || " ~ short_text('anonymous_id')) }} as user_key,
    user_id,
    email,
    order_id,
    value,
    currency
from firsts
