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
),

-- The present names, and whether the event that gave the name has changed. PostgreSQL has no nested loop for a full join.
present as materialized (
    select present.*, changes.id is not null as is_changed
    from (select present.* from changed inner join {{ this }} as present using (kind, id)) as present
    full join (select distinct event, id from {{ changes_of('events') }} as events) as changes
        on changes.event = present.event and changes.id = present.event_id
    where coalesce(present.kind, '') <> ''
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
    select kind, id, value, occurred_at, event, event_id
    from present
    where not is_changed
    {%- for kind in ['campaign', 'template', 'workflow'] %}
    union all
    select named.kind, named.id, named.value, events.occurred_at, events.event, events.id as event_id
    from (select * from present where is_changed and kind like '{{ kind }}%' offset 0) as present
    cross join lateral (
        select * from {{ ref('events') }} as events
        where events.{{ kind }}_id = present.id
        offset 0
    ) as events
    cross join lateral ({{ names_of_event() }}) as named (kind, id, value)
    where named.kind = present.kind and named.value is not null
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
