-- An id counts once a table. Two events of different collections with one id are a row in each collection's table, and
-- one row in tracks: the first that landed. The conservation law counts the rows that tracks lacks for this reason.

create function raw.count_shared_ids(schema_name text) returns bigint
language plpgsql stable
as $$
declare
    tracks_snapshot pg_snapshot := (
        select snapshot from raw.cursors where source = schema_name and model = 'tracks'
    );
    rows_in_tracks jsonb;
    reader record;
    found bigint;
    counted bigint := 0;
begin
    if tracks_snapshot is null or to_regclass(format('%I.tracks', schema_name)) is null then
        return 0;
    end if;
    execute format(
        'select coalesce(jsonb_object_agg(event, events), ''{}'')
        from (select event, count(*) as events from %I.tracks where event is not null group by event) as counted',
        schema_name
    ) into rows_in_tracks;

    for reader in
        select
            cursors.model,
            not exists (
                select from raw.events
                where
                    events.source = schema_name
                    and events.collection = cursors.model
                    and events.load_xid >= least(pg_snapshot_xmin(cursors.snapshot), pg_snapshot_xmin(tracks_snapshot))
                    and pg_visible_in_snapshot(events.load_xid, cursors.snapshot)
                    <> pg_visible_in_snapshot(events.load_xid, tracks_snapshot)
            ) as has_read_the_same
        from raw.cursors
        where
            cursors.source = schema_name
            and cursors.model <> 'tracks'
            and cursors.snapshot is not null
            and to_regclass(format('%I.%I', schema_name, cursors.model)) is not null
    loop
        -- Where a table and tracks have read the same events, equal counts say that they share no id. Comparing ids takes
        -- a join, which few tables need.
        if not reader.has_read_the_same
            or raw.count_rows(schema_name, reader.model) <> coalesce((rows_in_tracks ->> reader.model)::bigint, 0)
        then
            execute format(
                'select count(*) from %1$I.%2$I as served
                where exists (select from %1$I.tracks where tracks.id = served.id and tracks.event is distinct from %2$L)',
                schema_name, reader.model
            ) into found;
            counted := counted + found;
        end if;
    end loop;
    return counted;
end
$$;

comment on function raw.count_shared_ids is 'Rows of collections whose id tracks has under another event, because that one landed first.';

create or replace view raw.conservation as
with landed as (
    select
        events.source,
        events.collection,
        own.model is not null as has_table,
        count(*) as events,
        count(*) filter (
            where not coalesce(
                pg_visible_in_snapshot(
                    events.load_xid, case when own.model is null then tracks.snapshot else own.snapshot end
                ),
                false
            )
        ) as waiting,
        count(*) filter (
            where not coalesce(pg_visible_in_snapshot(events.load_xid, tracks.snapshot), false)
        ) as waiting_for_tracks
    from raw.events
    left join raw.cursors as own
        on own.source = events.source and own.model = events.collection and own.model <> 'tracks'
    left join raw.cursors as tracks on tracks.source = events.source and tracks.model = 'tracks'
    group by events.source, events.collection, own.model
),

by_source as (
    select
        source,
        coalesce(sum(events), 0) as landed,
        coalesce(sum(events) filter (where collection is null), 0) as other_calls,
        coalesce(sum(waiting) filter (where collection is not null), 0) as waiting,
        coalesce(sum(events - waiting) filter (where has_table), 0) as read_by_collections,
        coalesce(sum(events - waiting) filter (where not has_table and collection is not null), 0)
            as read_by_tracks_only,
        coalesce(sum(events - waiting_for_tracks) filter (where collection is not null), 0) as read_by_tracks
    from landed
    group by source
),

-- A table without a snapshot is about to be rebuilt: all its events are waiting, whatever rows it still has.
tables as (
    select
        source,
        coalesce(sum(raw.count_rows(source, model)) filter (where model <> 'tracks'), 0) as in_collections,
        coalesce(sum(read_rows - table_rows) filter (where model <> 'tracks'), 0) as duplicates,
        coalesce(sum(raw.count_rows(source, model)) filter (where model = 'tracks'), 0) as in_tracks,
        coalesce(sum(read_rows - table_rows) filter (where model = 'tracks'), 0) as duplicates_in_tracks
    from raw.cursors
    where snapshot is not null
    group by source
),

refused as (
    select
        source,
        count(*) filter (where resolved_at is null) as quarantined
    from raw.quarantine
    group by source
)

select
    sources.schema_name as source,
    coalesce(by_source.landed, 0) + coalesce(refused.quarantined, 0) as accepted,
    coalesce(tables.in_collections, 0) as in_collections,
    tracks_only.events as in_tracks_only,
    coalesce(refused.quarantined, 0) as quarantined,
    coalesce(tables.duplicates, 0) + coalesce(by_source.read_by_tracks_only, 0) - tracks_only.events as duplicates,
    coalesce(by_source.other_calls, 0) as other_calls,
    coalesce(by_source.waiting, 0) as waiting,
    coalesce(by_source.read_by_collections, 0) - coalesce(tables.in_collections, 0) - coalesce(tables.duplicates, 0)
        as missing_in_collections,
    coalesce(by_source.read_by_tracks, 0) - coalesce(tables.in_tracks, 0) - coalesce(tables.duplicates_in_tracks, 0)
        as missing_in_tracks,
    shared.ids as shared_ids
from (
    select schema_name from raw.sources
    union
    select source from by_source
    union
    select source from refused
) as sources
left join by_source on by_source.source = sources.schema_name
left join tables on tables.source = sources.schema_name
left join refused on refused.source = sources.schema_name
cross join lateral (select raw.count_tracks_only(sources.schema_name) as events) as tracks_only
cross join lateral (select raw.count_shared_ids(sources.schema_name) as ids) as shared;

comment on view raw.conservation is 'One row per source, registered or not: accepted = in_collections + in_tracks_only + quarantined + duplicates + other_calls + waiting. The two missing columns are 0, or something was lost. shared_ids: rows of collections that tracks lacks, because an event of another name landed first with the same id.';
