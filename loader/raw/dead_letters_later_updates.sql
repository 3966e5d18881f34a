-- Updates of profiles that the live delivery has passed, and that landed after a dead update of the same user.
with dead as materialized (
    select
        events.seq,
        events.load_xid,
        keys.key
    from raw.dead_letters
    inner join raw.events on events.load_xid = dead_letters.load_xid and events.seq = dead_letters.seq
    cross join
        lateral (
            values (events.payload ->> 'userId'), (lower(btrim(events.payload #>> '{traits,email}')))
        ) as keys (key)
    where dead_letters.id = any(%(ids)s::bigint[]) and events.payload ->> 'type' in ('identify', 'group')
),

later as (
    select distinct
        events.seq,
        events.load_xid
    from raw.events
    cross join
        lateral (
            values (events.payload ->> 'userId'), (lower(btrim(events.payload #>> '{traits,email}')))
        ) as keys (key)
    inner join dead on keys.key = dead.key and events.seq > dead.seq
    where
        events.source = %(source)s
        and events.collection is null
        and events.payload ->> 'type' in ('identify', 'group')
        and events.load_xid >= (select min(dead.load_xid) from dead)
)

select
    events.seq,
    events.load_xid::text as load_xid,
    events.message_id,
    raw.write_time(events.received_at) as received_at,
    raw.write_time(times.moment) as moment,
    events.payload::text as payload
from later
inner join raw.events on events.load_xid = later.load_xid and events.seq = later.seq
inner join raw.delivery_cursors as cursors
    on cursors.destination_id = %(destination)s and cursors.source = %(source)s and cursors.replay = 0
cross join
    lateral (
        select raw.read_call_time(events.payload, events.received_at) as moment
    ) as times
where
    (
        pg_visible_in_snapshot(events.load_xid, cursors.from_snapshot)
        or (pg_visible_in_snapshot(events.load_xid, cursors.to_snapshot) and events.seq <= cursors.position)
    )
    and not exists (
        select from raw.dead_letters
        where
            dead_letters.destination_id = %(destination)s
            and dead_letters.source = %(source)s
            and dead_letters.seq = events.seq
    )
order by events.seq
