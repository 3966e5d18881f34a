-- A physical copy of a cluster has the same system_identifier and goes on with transaction ids of its own. A dump restored
-- into such a copy was therefore taken for data of this cluster. So the schema remembers which transaction wrote it here:
-- PostgreSQL keeps the writer of a row in xmin, a physical copy keeps it too, and a restored row has another writer.

create table raw.restore_mark (
    singleton boolean primary key default true check (singleton),
    written_by xid8 not null default pg_current_xact_id(),
    events_oid oid not null default 'raw.events'::regclass
);

comment on table raw.restore_mark is 'One row that tells a restored dump from data written here: then xmin differs from written_by, or raw.events has another oid.';

insert into raw.restore_mark default values;


-- Looks into a few rows and the ends of indexes, so that every command can ask.
create function raw.has_foreign_transactions() returns boolean
language sql
set search_path = pg_catalog
as $$
    with here as materialized (
        select
            pg_snapshot_xmax(pg_current_snapshot()) as next_xid,
            coalesce(pg_current_xact_id_if_assigned(), '0'::xid8) as own_xid
    )

    select
        not exists (
            select from raw.restore_mark
            where restore_mark.xmin = restore_mark.written_by::xid and restore_mark.events_oid = 'raw.events'::regclass
        )
        or not exists (
            select from raw.cluster
            where cluster.system_identifier = (select control.system_identifier from pg_control_system() as control)
        )
        -- Ids that this cluster has not given out yet: of a later time of its own, before it was set back.
        or exists (select from raw.cursors, here where pg_snapshot_xmax(cursors.snapshot) > here.next_xid)
        or exists (
            select from (select snapshot from raw.transforms order by started_at desc limit 1) as latest, here
            where pg_snapshot_xmax(latest.snapshot) > here.next_xid
        )
        or exists (
            select from (select load_xid from raw.events order by load_xid desc limit 1) as latest, here
            where latest.load_xid >= here.next_xid and latest.load_xid > here.own_xid
        )
$$;

comment on function raw.has_foreign_transactions is 'Whether stored transaction ids and snapshots are those of another cluster, or of a later time of this one.';


-- An event has two readers: the model of its collection, where there is one, and tracks. Four low transaction ids, which no
-- real transaction has, say which of them have seen it: 1 both, 2 tracks alone, 3 its own model alone, 4 neither. Each
-- reader's snapshot shows exactly what it has seen, so nobody starts over, and whatever lands from now on is new.
--
-- No reader has seen an event above its last_seq. So events that landed here between the restore and this call are new too,
-- whatever the restored snapshots say of their transactions.
create or replace function raw.adopt_cluster() returns boolean
language plpgsql
set search_path = pg_catalog
as $$
declare
    item record;
begin
    if not raw.has_foreign_transactions() then
        return false;
    end if;

    -- Nobody may land or transform meanwhile.
    lock table raw.events, raw.cursors in share row exclusive mode;
    if not raw.has_foreign_transactions() then
        return false;
    end if;

    update raw.events
    set load_xid = case
        when not coalesce(events.seq <= tracks_seq and pg_visible_in_snapshot(events.load_xid, tracks_snapshot), false)
            then case
                when events.seq <= own_seq and pg_visible_in_snapshot(events.load_xid, own_snapshot) then '3'
                else '4'
            end
        when own_snapshot is null or (events.seq <= own_seq and pg_visible_in_snapshot(events.load_xid, own_snapshot))
            then '1'
        else '2'
    end::xid8
    from (
        select
            landed.source,
            landed.collection,
            own.snapshot as own_snapshot,
            own.last_seq as own_seq,
            tracks.snapshot as tracks_snapshot,
            tracks.last_seq as tracks_seq
        from (select distinct source, collection from raw.events where collection is not null) as landed
        left join raw.cursors as own on own.source = landed.source and own.model = landed.collection
        left join raw.cursors as tracks on tracks.source = landed.source and tracks.model = 'tracks'
    ) as readers
    where events.source = readers.source and events.collection = readers.collection;

    update raw.events set load_xid = '1' where collection is null;

    update raw.cursors
    set snapshot = case when model = 'tracks' then '3:3:' else '2:5:2,4' end::pg_snapshot
    where snapshot is not null;

    update raw.syncs set previous_snapshot = null, snapshot = null;
    update raw.transforms set snapshot = '2:2:';

    -- Any other snapshot says which events something holds for. Nothing is known of that any more, so it shows none.
    for item in
        select class.relname, attribute.attname
        from pg_attribute as attribute
        inner join pg_class as class on class.oid = attribute.attrelid
        where
            class.relnamespace = 'raw'::regnamespace
            and class.relkind = 'r'
            and class.relname not in ('cursors', 'syncs', 'transforms')
            and attribute.atttypid = 'pg_snapshot'::regtype
            and not attribute.attisdropped
    loop
        execute format('update raw.%1$I set %2$I = ''1:1:'' where %2$I is not null', item.relname, item.attname);
    end loop;

    update raw.cluster
    set system_identifier = (select control.system_identifier from pg_control_system() as control), adopted_at = now();
    delete from raw.restore_mark;
    insert into raw.restore_mark default values;
    if raw.has_foreign_transactions() then
        raise exception 'raw.adopt_cluster() was called inside a savepoint'
        using hint = 'Call it in a transaction of its own: select raw.adopt_cluster()', errcode = 'invalid_transaction_state';
    end if;
    return true;
end
$$;
