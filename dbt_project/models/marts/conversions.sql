{{ config(
    unique_key=['conversion_name', 'conversion_id'],
    meta={'indexes': {'user': 'using hash (user_id)', 'email': 'using hash (email)'}},
) }}
{% call changed_keys() %}
    select conversion_name, conversion_id
    from {{ changes_of('int_conversions') }} as tracked
    union all
    -- Another event of the same order may count now.
    select alike.conversion_name, alike.conversion_id
    from {{ changes_of('int_conversions') }} as tracked
    cross join lateral (
        select conversion_name, conversion_id
        from {{ ref('int_conversions') }} as stored
        where
            stored.conversion_name = tracked.conversion_name
            and stored.order_id is not null
            and md5(stored.order_id) = md5(tracked.order_id)
        offset 0
    ) as alike
{% endcall %}

with tracked as (
    select tracked.*
    from /*-*/ {{ ref('int_conversions') }} /*-*/ /*+ changed
    cross join lateral (
        select *
        from {{ ref('int_conversions') }} as stored
        where stored.conversion_name = changed.conversion_name and stored.conversion_id = changed.conversion_id
        offset 0
    ) +*/ as tracked
)

select
    conversion_name,
    conversion_id,
    occurred_at,
    day,
    user_key,
    user_id,
    email,
    order_id,
    value,
    currency
from tracked
-- An order that was tracked twice counts once.
where
    order_id is null
    or not exists (
        select from {{ ref('int_conversions') }} as earlier
        where
            earlier.conversion_name = tracked.conversion_name
            and earlier.order_id is not null
            and md5(earlier.order_id) = md5(tracked.order_id)
            and (
                earlier.occurred_at < tracked.occurred_at
                or (
                    earlier.occurred_at = tracked.occurred_at
                    and earlier.conversion_id collate "C" < tracked.conversion_id collate "C"
                )
            )
    )
