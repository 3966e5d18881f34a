-- Destinations get the landed events. raw.events is their queue: a cursor of snapshots says how far each of them is.

create table raw.destinations (
    id bigint generated always as identity primary key,
    name text not null unique,
    kind text not null check (kind in ('segment', 'webhook', 'files', 'iterable')),
    settings jsonb not null default '{}',
    filters jsonb not null default '{}',
    version bigint not null default 1,
    state text not null default 'active' check (state in ('active', 'failing', 'paused')),
    pause_reason text check (pause_reason in ('manual', 'config', 'rejecting')),
    last_error text,
    state_since timestamptz not null default clock_timestamp(),
    next_try_at timestamptz,
    last_delivered_at timestamptz,
    requests jsonb not null default '{}',
    notes jsonb not null default '{}',
    created_at timestamptz not null default clock_timestamp(),
    check ((state = 'paused') = (pause_reason is not null))
);

comment on table raw.destinations is 'One row per destination: a system that gets the landed events.';
comment on column raw.destinations.settings is 'The address and the limits. A secret is never here: `key` says where the secret is, as env:NAME or file:/path.';
comment on column raw.destinations.filters is 'Which events go, and in which shape. A change acts from the next window.';
comment on column raw.destinations.version is 'Counts the changes of settings and filters.';
comment on column raw.destinations.pause_reason is '`manual`: a person paused it; `config`: the receiver refuses the key or the address; `rejecting`: the receiver refuses too many events.';
comment on column raw.destinations.requests is 'Number of requests by the status of the answer; 0 stands for no answer.';
comment on column raw.destinations.notes is 'Remarks of the receiver and of the mapping, with their numbers, such as fields that were left out.';

create table raw.delivery_cursors (
    destination_id bigint not null references raw.destinations on delete cascade,
    source text not null,
    replay bigint not null default 0,
    start_snapshot pg_snapshot not null,
    from_snapshot pg_snapshot not null,
    to_snapshot pg_snapshot,
    end_snapshot pg_snapshot,
    position bigint not null default 0,
    last_seq bigint not null default 0,
    filters jsonb not null default '{}',
    selection jsonb not null default '{}',
    delivered bigint not null default 0,
    filtered bigint not null default 0,
    repeated bigint not null default 0,
    dead bigint not null default 0,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    primary key (destination_id, source, replay)
);

comment on table raw.delivery_cursors is 'One row per destination, source and replay: how far the delivery is. Moves after the answer of the receiver.';
comment on column raw.delivery_cursors.replay is '0 for the live delivery; else the number of a replay.';
comment on column raw.delivery_cursors.start_snapshot is 'The events of this snapshot do not concern the cursor.';
comment on column raw.delivery_cursors.from_snapshot is 'The events of this snapshot are done.';
comment on column raw.delivery_cursors.to_snapshot is 'The open window: the events of this snapshot that from_snapshot does not show. Null between two windows.';
comment on column raw.delivery_cursors.end_snapshot is 'The last events of a replay; null for the live delivery.';
comment on column raw.delivery_cursors.position is 'The highest seq that is done in the open window.';
comment on column raw.delivery_cursors.last_seq is 'No event above this seq is in one of the snapshots.';
comment on column raw.delivery_cursors.filters is 'The filters of the open window.';
comment on column raw.delivery_cursors.selection is 'The events of a replay: `since`, `until`, `by`, `events`; and its `rate`.';

create table raw.dead_letters (
    id bigint generated always as identity primary key,
    destination_id bigint not null references raw.destinations on delete cascade,
    source text not null,
    replay bigint not null default 0,
    seq bigint not null,
    load_xid xid8 not null,
    message_id varchar(100) not null,
    status integer,
    reason text not null,
    answer text not null default '',
    attempts integer not null default 1,
    died_at timestamptz not null default clock_timestamp(),
    last_tried_at timestamptz not null default clock_timestamp(),
    next_try_at timestamptz,
    unique (destination_id, source, seq)
);

comment on table raw.dead_letters is 'One row per event that a destination did not accept. `loader forward dead` lists, retries and drops them.';
comment on column raw.dead_letters.replay is 'The cursor that counts the event as dead.';
comment on column raw.dead_letters.load_xid is 'The transaction of the event in raw.events, whose index finds the event.';
comment on column raw.dead_letters.status is 'The status of the answer; null if no request was sent.';
comment on column raw.dead_letters.answer is 'The beginning of the answer.';
comment on column raw.dead_letters.next_try_at is 'The time of the next try that the worker makes by itself; null if it makes none.';

create table raw.destination_suppressions (
    destination_id bigint not null references raw.destinations on delete cascade,
    key_sha256 bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (destination_id, key_sha256)
);

comment on table raw.destination_suppressions is 'One row per user that the receiver has forgotten. Nothing is sent about this user again.';
comment on column raw.destination_suppressions.key_sha256 is 'SHA-256 of the user''s e-mail address, trimmed and in lower case, or of the user''s id.';


-- Returns the part of a snapshot below a transaction: the snapshot shows the same transactions, but none from that one on.
create function raw.cut_snapshot(snapshot pg_snapshot, before xid8) returns pg_snapshot
language sql immutable strict
set search_path = pg_catalog
as $$
    select case
        when before >= pg_snapshot_xmax(snapshot) then snapshot
        else (
            select format(
                '%s:%s:%s', least(before, pg_snapshot_xmin(snapshot)), before, string_agg(xip::text, ',' order by xip)
            )::pg_snapshot
            from pg_snapshot_xip(snapshot) as xip
            where xip < before
        )
    end
$$;

comment on function raw.cut_snapshot is 'The part of a snapshot below a transaction.';


create function raw.snapshot_includes(snapshot pg_snapshot, earlier pg_snapshot) returns boolean
language sql immutable
set search_path = pg_catalog
as $$
    select
        pg_snapshot_xmax(snapshot) >= pg_snapshot_xmax(earlier)
        and not exists (
            select from pg_snapshot_xip(snapshot) as xip
            where pg_visible_in_snapshot(xip, earlier)
        )
$$;

comment on function raw.snapshot_includes is 'Whether a snapshot shows every transaction that another snapshot shows.';


-- A table without new events keeps an old snapshot. So the snapshot of the last run that filled all tables counts, where it
-- is later and the run did not hold tracks back.
create function raw.read_tracks_snapshot(schema_name text) returns pg_snapshot
language sql stable
set search_path = pg_catalog
as $$
    select case
        when
            pg_snapshot_xmax(done.snapshot) > pg_snapshot_xmax(cursors.snapshot)
            and not exists (
                select from raw.held_tables
                where held_tables.source = schema_name and held_tables.model = 'tracks' and held_tables.held = 'fill'
            )
            then done.snapshot
        else cursors.snapshot
    end
    from raw.cursors
    left join (
        select transforms.snapshot from raw.transforms
        where transforms.whole
        order by transforms.started_at desc limit 1
    ) as done on true
    where
        cursors.source = schema_name
        and cursors.model = 'tracks'
        and to_regclass(format('%I.tracks', schema_name)) is not null
$$;

comment on function raw.read_tracks_snapshot is 'The events that tracks has read; null before its first run.';


-- The time of a call that is in no table, as tracks computes the time of an event: see macros/event_columns.sql.
create function raw.read_call_time(payload jsonb, received_at timestamptz) returns timestamptz
language sql stable
set search_path = pg_catalog
as $$
    select case
        when times.corrected is not null and times.received_at = read_call_time.received_at then times.corrected
        when times.original is null then read_call_time.received_at
        when times.sent_at - times.original between interval '-4000 years' and interval '4000 years'
            then read_call_time.received_at - (times.sent_at - times.original)
        else times.original
    end
    from (
        select
            coalesce(raw.to_time(payload ->> 'sentAt'), raw.read_time(payload ->> 'sentAt')) as sent_at,
            coalesce(raw.to_time(coalesce(payload ->> 'originalTimestamp', payload ->> 'timestamp')), raw.read_time(coalesce(payload ->> 'originalTimestamp', payload ->> 'timestamp'))) as original,
            case when payload ? 'originalTimestamp' then coalesce(raw.to_time(payload ->> 'timestamp'), raw.read_time(payload ->> 'timestamp')) end as corrected,
            case when payload ? 'originalTimestamp' then coalesce(raw.to_time(payload ->> 'receivedAt'), raw.read_time(payload ->> 'receivedAt')) end as received_at
    ) as times
$$;

comment on function raw.read_call_time is 'The time of a call that is in no table, as tracks computes the time of an event.';


-- Returns one character per snapshot of deliveries: 1 if it shows an event, else 0. `snapshots` lists snapshot and last_seq.
create function raw.read_delivery_pattern(seq bigint, load_xid xid8, snapshots jsonb) returns text
language sql immutable strict
set search_path = pg_catalog
as $$
    select string_agg(
        case
            when seq <= (entries.entry ->> 1)::bigint
                and pg_visible_in_snapshot(load_xid, (entries.entry ->> 0)::pg_snapshot) then '1'
            else '0'
        end,
        '' order by entries.number
    )
    from jsonb_array_elements(snapshots) with ordinality as entries (entry, number)
$$;

comment on function raw.read_delivery_pattern is 'Which snapshots of deliveries show an event, one character per snapshot.';


-- Returns one character per reader of an event: 1 if the reader has seen it, else 0. The first reader is the model of the
-- event's collection, the second is tracks, the others are the snapshots of deliveries. PostgreSQL inlines the function,
-- because it has no setting.
create function raw.read_pattern(
    seq bigint,
    load_xid xid8,
    own_snapshot pg_snapshot,
    own_seq bigint,
    tracks_snapshot pg_snapshot,
    tracks_seq bigint,
    snapshots jsonb
) returns text
language sql immutable
return case
    when own_snapshot is null or (seq <= own_seq and pg_visible_in_snapshot(load_xid, own_snapshot)) then '1'
    else '0'
end
|| case when seq <= tracks_seq and pg_visible_in_snapshot(load_xid, tracks_snapshot) then '1' else '0' end
|| coalesce(raw.read_delivery_pattern(seq, load_xid, snapshots), '');

comment on function raw.read_pattern is 'Which readers have seen an event, one character per reader.';


-- Returns the snapshot that shows the events whose patterns have a 1 at all places. The place of a pattern in the list is
-- the transaction id of its events.
create function raw.snapshot_of_patterns(patterns text[], places integer[]) returns pg_snapshot
language sql immutable
set search_path = pg_catalog
as $$
    select format(
        '%s:%s:%s',
        coalesce(min(listed.stamp), cardinality(patterns) + 1),
        cardinality(patterns) + 1,
        string_agg(listed.stamp::text, ',' order by listed.stamp)
    )::pg_snapshot
    from unnest(patterns) with ordinality as listed (pattern, stamp)
    where exists (
        select from unnest(places) as place
        where substr(listed.pattern, place, 1) <> '1'
    )
$$;

comment on function raw.snapshot_of_patterns is 'The snapshot that shows the events which readers have seen, after an adoption.';


-- An event has many readers: the model of its collection, tracks, and each snapshot of a destination's cursor. Events that
-- the same readers have seen get one low transaction id, which no real transaction has. Each snapshot becomes the list of
-- ids whose events it shows. So each reader has seen exactly the events that it had seen, and whatever lands from now on is
-- new.
--
-- No reader has seen an event above its last_seq. So events that landed here between the restore and this call are new too,
-- whatever the restored snapshots say of their transactions.
create or replace function raw.adopt_cluster() returns boolean
language plpgsql
set search_path = pg_catalog
set lock_timeout = '1s'
as $$
declare
    -- The snapshots of deliveries by source.
    deliveries jsonb;
    patterns text[];
    item record;
    each record;
begin
    if not raw.has_foreign_transactions() then
        return false;
    end if;

    -- Nobody may land, transform or deliver meanwhile.
    lock table raw.events, raw.cursors, raw.delivery_cursors in share row exclusive mode;
    if not raw.has_foreign_transactions() then
        return false;
    end if;

    select coalesce(jsonb_object_agg(listed.source, listed.snapshots), '{}') into deliveries
    from (
        select
            cursors.source,
            jsonb_agg(
                jsonb_build_array(parts.snapshot, cursors.last_seq)
                order by cursors.destination_id, cursors.replay, parts.part
            ) as snapshots
        from raw.delivery_cursors as cursors
        cross join lateral (
            values (1, start_snapshot), (2, from_snapshot), (3, to_snapshot), (4, end_snapshot)
        ) as parts (part, snapshot)
        group by cursors.source
    ) as listed;

    select coalesce(array_agg(found.pattern order by found.pattern desc), '{}') into patterns
    from (
        select distinct
            raw.read_pattern(
                events.seq, events.load_xid, own.snapshot, own.last_seq, tracks.snapshot, tracks.last_seq,
                deliveries -> events.source
            ) as pattern
        from raw.events
        left join raw.cursors as own on own.source = events.source and own.model = events.collection
        left join raw.cursors as tracks on tracks.source = events.source and tracks.model = 'tracks'
    ) as found;

    update raw.events
    set load_xid = array_position(
        patterns,
        raw.read_pattern(
            events.seq, events.load_xid, readers.own_snapshot, readers.own_seq, readers.tracks_snapshot,
            readers.tracks_seq, deliveries -> events.source
        )
    )::text::xid8
    from (
        select
            landed.source,
            landed.collection,
            own.snapshot as own_snapshot,
            own.last_seq as own_seq,
            tracks.snapshot as tracks_snapshot,
            tracks.last_seq as tracks_seq
        from (select distinct source, collection from raw.events) as landed
        left join raw.cursors as own on own.source = landed.source and own.model = landed.collection
        left join raw.cursors as tracks on tracks.source = landed.source and tracks.model = 'tracks'
    ) as readers
    where events.source = readers.source and events.collection is not distinct from readers.collection;

    if exists (select from raw.dead_letters) then
        update raw.dead_letters set load_xid = events.load_xid
        from raw.events
        where events.source = dead_letters.source and events.seq = dead_letters.seq;
    end if;

    update raw.cursors
    set snapshot = raw.snapshot_of_patterns(patterns, array[case when model = 'tracks' then 2 else 1 end])
    where snapshot is not null;

    update raw.delivery_cursors
    set
        start_snapshot = raw.snapshot_of_patterns(patterns, array[places.before + 1]),
        from_snapshot = raw.snapshot_of_patterns(patterns, array[places.before + 2]),
        to_snapshot = case when to_snapshot is not null then raw.snapshot_of_patterns(patterns, array[places.before + 3]) end,
        end_snapshot = case when end_snapshot is not null then raw.snapshot_of_patterns(patterns, array[places.before + 4]) end
    from (
        select
            listed.destination_id,
            listed.source,
            listed.replay,
            (row_number() over (partition by listed.source order by listed.destination_id, listed.replay) * 4 - 2)::integer
                as before
        from raw.delivery_cursors as listed
    ) as places
    where
        delivery_cursors.destination_id = places.destination_id
        and delivery_cursors.source = places.source
        and delivery_cursors.replay = places.replay;

    update raw.syncs set previous_snapshot = null, snapshot = null;
    update raw.transforms set snapshot = raw.snapshot_of_patterns(patterns, array[1, 2]);

    -- Any other snapshot says which events something holds for. Nothing is known of that any more, so it shows none.
    for item in
        select class.relname, attribute.attname
        from pg_attribute as attribute
        inner join pg_class as class on class.oid = attribute.attrelid
        where
            class.relnamespace = 'raw'::regnamespace
            and class.relkind = 'r'
            and class.relname not in ('cursors', 'syncs', 'transforms', 'delivery_cursors')
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


create view raw.delivery_conservation as
select
    destinations.name as destination,
    cursors.source,
    counted.events,
    cursors.delivered,
    cursors.filtered,
    cursors.repeated,
    cursors.dead
from raw.delivery_cursors as cursors
inner join raw.destinations on destinations.id = cursors.destination_id
cross join
    lateral (
        select count(*) as events
        from raw.events
        where
            events.source = cursors.source
            and events.load_xid >= pg_snapshot_xmin(cursors.start_snapshot)
            and not pg_visible_in_snapshot(events.load_xid, cursors.start_snapshot)
            and (
                pg_visible_in_snapshot(events.load_xid, cursors.from_snapshot)
                or (pg_visible_in_snapshot(events.load_xid, cursors.to_snapshot) and events.seq <= cursors.position)
            )
    ) as counted
where cursors.replay = 0;

comment on view raw.delivery_conservation is 'One row per destination and source: events = delivered + filtered + repeated + dead, or events were lost or counted twice.';


create table raw.returned_calls (
    source text primary key,
    calls bigint not null,
    last_at timestamptz not null default clock_timestamp()
);

comment on table raw.returned_calls is 'One row per source: calls that this warehouse has forwarded and that came back. They were answered with 200, and did not land.';
