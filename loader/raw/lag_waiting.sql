-- A table without new events keeps an old snapshot. So the snapshot of the last run that filled all tables counts, where
-- it is later. An event that waits for its own table and for tracks is counted once, for its own table.
with done as materialized (
    select coalesce(
        (
            select transforms.snapshot from raw.transforms
            where transforms.whole
            order by transforms.started_at desc limit 1
        ),
        '1:1:'
    )::pg_snapshot as snapshot
),

readers as materialized (
    select
        cursors.source,
        cursors.model,
        case
            when cursors.snapshot is null then '1:1:'
            when pg_snapshot_xmax(cursors.snapshot) >= pg_snapshot_xmax(done.snapshot) then cursors.snapshot
            -- The last run that filled all tables has held this table back.
            when exists (
                select from raw.held_tables as tables
                where tables.source = cursors.source and tables.model = cursors.model and tables.held = 'fill'
            ) then cursors.snapshot
            else done.snapshot
        end::pg_snapshot as snapshot
    from (
        select
            source,
            model,
            snapshot
        from raw.cursors
        where model <> 'tracks'
        union all
        select
            sources.schema_name,
            'tracks',
            cursors.snapshot
        from raw.sources
        left join raw.cursors on cursors.source = sources.schema_name and cursors.model = 'tracks'
    ) as cursors
    cross join done
)

select
    count(*) as waiting,
    extract(epoch from clock_timestamp() - min(landed_at))::float8 as oldest_seconds
from (
    select waiting.landed_at
    from (
        select * from readers
        where model <> 'tracks'
    ) as readers
    cross join
        lateral (
            (
                select events.landed_at
                from raw.events
                where
                    events.source = readers.source
                    and events.collection = readers.model
                    and events.collection <> ''
                    and events.load_xid >= pg_snapshot_xmax(readers.snapshot)
                order by events.load_xid
                limit %(most)s
            )
            union all
            (
                select events.landed_at
                from raw.events
                where
                    events.source = readers.source
                    and events.collection = readers.model
                    and events.collection <> ''
                    and events.load_xid = any(array(select pg_snapshot_xip(readers.snapshot)))
                limit %(most)s
            )
        ) as waiting
    union all
    select waiting.landed_at
    from (
        select * from readers
        where model = 'tracks'
    ) as readers
    cross join
        lateral (
            (
                select
                    events.source,
                    events.collection,
                    events.load_xid,
                    events.landed_at
                from raw.events
                where
                    events.source = readers.source
                    and events.collection is not null
                    and events.load_xid >= pg_snapshot_xmax(readers.snapshot)
                order by events.load_xid
                limit %(most)s
            )
            union all
            (
                select
                    events.source,
                    events.collection,
                    events.load_xid,
                    events.landed_at
                from raw.events
                where
                    events.source = readers.source
                    and events.collection is not null
                    and events.load_xid = any(array(select pg_snapshot_xip(readers.snapshot)))
                limit %(most)s
            )
        ) as waiting
    left join readers as own on own.source = waiting.source and own.model = waiting.collection
    where own.model is null or pg_visible_in_snapshot(waiting.load_xid, own.snapshot)
) as waiting
