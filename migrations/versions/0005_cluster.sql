-- Transaction ids mean something in one cluster only. After a dump is restored into another, the stored ids and
-- snapshots are history: this re-stamps the events so that each model goes on exactly where it stood.

create table raw.cluster (
    singleton boolean primary key default true check (singleton),
    system_identifier bigint not null,
    adopted_at timestamptz not null default now()
);

comment on table raw.cluster is 'The cluster whose transaction ids raw.events and the snapshots speak of.';

insert into raw.cluster (system_identifier) select system_identifier from pg_control_system();

-- An event has two readers: the model of its collection, where there is one, and tracks. What both had seen gets
-- transaction 1, the rest 2, and every snapshot says "before 2". No real transaction has so low a number, so whatever lands
-- here is new.
create function raw.adopt_cluster() returns boolean
language plpgsql
as $$
declare
    here bigint := (select system_identifier from pg_control_system());
begin
    if exists (select from raw.cluster where system_identifier = here) then
        return false;
    end if;

    -- Nobody may land or transform meanwhile.
    lock table raw.events, raw.cursors in share row exclusive mode;
    if exists (select from raw.cluster where system_identifier = here) then
        return false;
    end if;

    create temporary table stamps on commit drop as
    select
        events.source,
        events.collection,
        events.load_xid,
        coalesce(pg_visible_in_snapshot(events.load_xid, own.snapshot), false) as seen_by_own,
        coalesce(pg_visible_in_snapshot(events.load_xid, tracks.snapshot), false) as seen_by_tracks,
        own.snapshot is not null as has_own
    from (select distinct source, collection, load_xid from raw.events where collection is not null) as events
    left join raw.cursors as own on own.source = events.source and own.model = events.collection
    left join raw.cursors as tracks on tracks.source = events.source and tracks.model = 'tracks';

    update raw.events
    set load_xid = case when seen_by_tracks and (seen_by_own or not has_own) then '1'::xid8 else '2' end
    from stamps
    where
        events.source = stamps.source
        and events.collection = stamps.collection
        and events.load_xid = stamps.load_xid;

    update raw.events set load_xid = '1' where collection is null;

    update raw.cursors set snapshot = '2:2:' where snapshot is not null;

    -- A reader that had seen something the other had not starts over; everybody else goes on from here.
    update raw.cursors
    set snapshot = null, read_rows = 0, table_rows = 0, last_seq = 0
    from stamps
    where
        cursors.source = stamps.source
        and (
            (cursors.model = 'tracks' and seen_by_tracks and has_own and not seen_by_own)
            or (cursors.model = stamps.collection and seen_by_own and not seen_by_tracks)
        );

    drop table stamps;
    update raw.syncs set previous_snapshot = null, snapshot = null;
    update raw.transforms set snapshot = '2:2:';
    update raw.cluster set system_identifier = here, adopted_at = now();
    return true;
end
$$;

comment on function raw.adopt_cluster is 'Re-stamps the events after a restore into another cluster; true if it had to.';
