{{ config(
    unique_key=['kind', 'id'],
) }}
{% call changed_keys() %}
    select named.kind, named.id
    from {{ changes_of('events') }} as events
    cross join lateral ({{ names_of_event() }}) as named (kind, id, value)
    where named.id is not null and named.value is not null
{% endcall %}

with named as (
    select named.*, events.occurred_at, events.event, events.id as event_id
    from /*-*/ {{ ref('events') }} /*-*/ /*+ {{ changed_rows('events') }} +*/ as events
    cross join lateral ({{ names_of_event() }}) as named (kind, id, value)
    where named.id is not null and named.value is not null
    /*+ union all
    -- The present name stands, unless the event that gave the name has changed.
    select present.kind, present.id, present.value, present.occurred_at, present.event, present.event_id
    from changed
    inner join {{ this }} as present using (kind, id)
    where not exists (
        select from {{ changes_of('events') }} as events
        where events.event = present.event and events.id = present.event_id
    )
    {%- for kind in ['campaign', 'template', 'workflow'] %}
    union all
    select named.*, events.occurred_at, events.event, events.id as event_id
    from changed
    inner join {{ this }} as present using (kind, id)
    cross join lateral (
        select * from {{ ref('events') }} as events
        where events.{{ kind }}_id = present.id and present.kind like '{{ kind }}%'
        offset 0
    ) as events
    cross join lateral ({{ names_of_event() }}) as named (kind, id, value)
    where
        named.kind = present.kind
        and named.value is not null
        and exists (
            select from {{ changes_of('events') }} as changes
            where changes.event = present.event and changes.id = present.event_id
        )
    {%- endfor %} +*/
),

latest as not materialized (
    select kind, id, max(occurred_at) as occurred_at
    from named
    group by kind, id
)

select distinct on (named.kind, named.id)
    named.kind,
    named.id,
    named.value,
    named.occurred_at,
    named.event,
    named.event_id
from named
inner join latest on latest.kind = named.kind and latest.id = named.id and latest.occurred_at = named.occurred_at
order by named.kind, named.id, named.event collate "C" desc, named.event_id collate "C" desc
