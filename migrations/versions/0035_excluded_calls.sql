-- A track call may say in its integrations that it belongs to no warehouse, or not to this one. Such a call has no
-- collection, so no table reads it. Its type tells it from a call of another type.

create or replace view raw.conservation as
with landed as (
    select
        events.source,
        events.collection,
        own.model is not null as has_table,
        events.collection is null and coalesce(events.payload ->> 'type', 'track') = 'track' as is_excluded,
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
    group by events.source, events.collection, own.model, is_excluded
),

by_source as (
    select
        source,
        coalesce(sum(events), 0) as landed,
        coalesce(sum(events) filter (where collection is null and not is_excluded), 0) as other_calls,
        coalesce(sum(events) filter (where is_excluded), 0) as excluded,
        coalesce(sum(waiting) filter (where collection is not null), 0) as waiting,
        coalesce(sum(events - waiting) filter (where has_table), 0) as read_by_collections,
        coalesce(sum(events - waiting) filter (where not has_table and collection is not null), 0)
            as read_by_tracks_only,
        coalesce(sum(events - waiting_for_tracks) filter (where collection is not null), 0) as read_by_tracks
    from landed
    group by source
),

-- A table without a snapshot is about to be rebuilt: all its events are waiting, whatever rows it still has.
counted as materialized (
    select
        source,
        model,
        read_rows - table_rows as duplicates,
        raw.count_rows(source, model) as row_count
    from raw.cursors
    where snapshot is not null
),

tables as (
    select
        counted.source,
        coalesce(sum(counted.row_count) filter (where counted.model <> 'tracks'), 0) as in_collections,
        coalesce(sum(counted.duplicates) filter (where counted.model <> 'tracks'), 0) as duplicates,
        coalesce(sum(counted.row_count) filter (where counted.model = 'tracks'), 0) as in_tracks,
        coalesce(sum(counted.duplicates) filter (where counted.model = 'tracks'), 0) as duplicates_in_tracks,
        count(*) filter (
            where counted.row_count + counted.duplicates <> case
                when counted.model = 'tracks' then coalesce(by_source.read_by_tracks, 0)
                else coalesce(landed.events - landed.waiting, 0)
            end
        ) as unequal
    from counted
    left join by_source on by_source.source = counted.source
    left join landed on landed.source = counted.source and landed.collection = counted.model and landed.has_table
    group by counted.source
),

refused as (
    select
        source,
        count(*) filter (where resolved_at is null) as quarantined
    from raw.quarantine
    group by source
),

given_up as (
    select
        source,
        sum(messages) as messages
    from raw.discarded
    group by source
)

select
    sources.schema_name as source,
    coalesce(by_source.landed, 0) + coalesce(refused.quarantined, 0) + coalesce(given_up.messages, 0) as accepted,
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
    shared.ids as shared_ids,
    coalesce(given_up.messages, 0) as discarded,
    coalesce(tables.unequal, 0) as unequal_tables,
    coalesce(by_source.excluded, 0) as excluded
from (
    select schema_name from raw.sources
    union
    select source from by_source
    union
    select source from refused
    union
    select source from given_up
) as sources
left join by_source on by_source.source = sources.schema_name
left join tables on tables.source = sources.schema_name
left join refused on refused.source = sources.schema_name
left join given_up on given_up.source = sources.schema_name
cross join lateral (select raw.count_tracks_only(sources.schema_name) as events) as tracks_only
cross join lateral (select raw.count_shared_ids(sources.schema_name) as ids) as shared;

comment on view raw.conservation is 'One row per source, registered or not: accepted = in_collections + in_tracks_only + quarantined + discarded + duplicates + other_calls + excluded + waiting. The two missing columns and unequal_tables are 0, or something was lost. unequal_tables: tables that have more or fewer rows than raw.events has events for them; in the sums, one that has more could hide one that has fewer. shared_ids: rows of collections that tracks lacks, because an event of another name landed first with the same id. excluded: track calls whose integrations keep them out of this warehouse; they are in raw.events and in no table.';

comment on column raw.events.collection is 'The table it belongs to; empty when its name gives none. Null for a call other than track, and for a track call whose integrations keep it out of this warehouse.';
