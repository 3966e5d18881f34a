-- An earlier version deleted such rows without a note.
with reports as (
    select
        *,
        sum(full_refresh::int) over (partition by source, model order by started_at, transform_id) as rebuild
    from raw.syncs
),

rebuilds as (
    select
        source,
        model,
        rebuild,
        sum(read_rows) as read_rows,
        min(read_rows) filter (where full_refresh) as first_read_rows,
        min(started_at) as started_at,
        max(note) filter (where full_refresh) as note,
        max(rebuild) over (partition by source, model) as last_rebuild
    from reports
    group by source, model, rebuild
)

select
    later.source,
    later.model as table,
    earlier.read_rows as events_read_before,
    later.first_read_rows as events_read_again,
    later.started_at as rebuilt
from rebuilds as later
inner join rebuilds as earlier
    on earlier.source = later.source and earlier.model = later.model and earlier.rebuild = later.rebuild - 1
where later.rebuild = later.last_rebuild and later.first_read_rows < earlier.read_rows and later.note is null
order by later.source, later.model
