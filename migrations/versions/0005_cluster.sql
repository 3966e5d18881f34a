-- Transaction ids mean something in one cluster only. After a dump is restored into another, the stored ids and
-- snapshots are history: this re-stamps the events so that each model goes on exactly where it stood.

create table raw.cluster (
    singleton boolean primary key default true check (singleton),
    system_identifier bigint not null,
    adopted_at timestamptz not null default now()
);

comment on table raw.cluster is 'The cluster whose transaction ids raw.events and the snapshots speak of.';

insert into raw.cluster (system_identifier) select system_identifier from pg_control_system();

create function raw.adopt_cluster() returns boolean
language plpgsql
as $$
declare
    here bigint := (select system_identifier from pg_control_system());
    now_xid xid8;
begin
    if exists (select from raw.cluster where system_identifier = here) then
        return false;
    end if;

    -- Nobody may land or transform meanwhile.
    lock table raw.events, raw.cursors in share row exclusive mode;
    if exists (select from raw.cluster where system_identifier = here) then
        return false;
    end if;
    now_xid := pg_current_xact_id();

    -- An event has two readers: the model of its collection, where there is one, and tracks.
    create temporary table stamps on commit drop as
    select
        events.source,
        events.collection,
        events.load_xid,
        pg_visible_in_snapshot(events.load_xid, own.snapshot) as seen_by_own,
        pg_visible_in_snapshot(events.load_xid, tracks.snapshot) as seen_by_tracks
    from (select distinct source, collection, load_xid from raw.events where collection is not null) as events
    left join raw.cursors as own on own.source = events.source and own.model = events.collection
    left join raw.cursors as tracks on tracks.source = events.source and tracks.model = 'tracks';

    -- What both have seen becomes older than any transaction (1), the rest new.
    update raw.events
    set load_xid = case when seen_by_tracks and coalesce(seen_by_own, true) then '1'::xid8 else now_xid end
    from stamps
    where
        events.source = stamps.source
        and events.collection = stamps.collection
        and events.load_xid = stamps.load_xid;

    update raw.events set load_xid = '1' where collection is null;

    -- A reader that had seen something the other had not starts over; everybody else goes on from here.
    update raw.cursors
    set snapshot = format('%s:%s:', now_xid, now_xid)::pg_snapshot
    where snapshot is not null;

    update raw.cursors
    set snapshot = null, read_rows = 0, table_rows = 0
    from stamps
    where
        cursors.source = stamps.source
        and (
            (cursors.model = 'tracks' and seen_by_tracks and not coalesce(seen_by_own, true))
            or (cursors.model = stamps.collection and seen_by_own and not coalesce(seen_by_tracks, false))
        );

    drop table stamps;
    update raw.syncs set previous_snapshot = null, snapshot = null;
    update raw.transforms set snapshot = format('%s:%s:', now_xid, now_xid)::pg_snapshot;
    update raw.cluster set system_identifier = here, adopted_at = now();
    return true;
end
$$;

comment on function raw.adopt_cluster is 'Re-stamps the events after a restore into another cluster; true if it had to.';
