{{ config(
    unique_key=['kind', 'id'],
) }}
{% call changed_keys() %}
    select named.kind, named.id
    from {{ changes_of('events') }} as events
    cross join lateral ({{ names_of_event() }}) as named (kind, id, value)
    where named.id is not null and named.value is not null
{% endcall %}

with /*+ recent as materialized (
    select * from {{ changed_rows('events') }} as events
), +*/

-- Events of one campaign share their names, so few rows are left.
grouped as (
    select
        campaign_id,
        campaign_name,
        template_id,
        template_name,
        workflow_id,
        workflow_name,
        max(occurred_at) as occurred_at
    from /*-*/ {{ ref('events') }} /*-*/ /*+ recent +*/ as events
    group by campaign_id, campaign_name, template_id, template_name, workflow_id, workflow_name
),

latest as (
    select named.kind, named.id, max(events.occurred_at) as occurred_at
    from grouped as events
    cross join lateral ({{ names_of_event() }}) as named (kind, id, value)
    where named.id is not null and named.value is not null
    group by named.kind, named.id
),

named as (
    {%- for kind in ['campaign', 'template', 'workflow'] %}
    select named.kind, named.id, named.value, events.occurred_at, events.event, events.id as event_id
    from latest
    inner join /*-*/ {{ ref('events') }} /*-*/ /*+ recent +*/ as events
        on events.{{ kind }}_id = latest.id and events.occurred_at = latest.occurred_at
    cross join lateral ({{ names_of_event() }}) as named (kind, id, value)
    where latest.kind like '{{ kind }}%' and named.kind = latest.kind and named.value is not null
    {{- " union all" if not loop.last }}
    {%- endfor %}
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
    select named.kind, named.id, named.value, events.occurred_at, events.event, events.id as event_id
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
)

select distinct on (kind, id)
    kind,
    id,
    value,
    occurred_at,
    event,
    event_id
from named
order by kind, id, occurred_at desc, event collate "C" desc, event_id collate "C" desc
