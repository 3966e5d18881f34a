select
    dead_letters.id,
    dead_letters.attempts,
    events.seq,
    events.load_xid::text as load_xid,
    events.message_id,
    raw.write_time(events.received_at) as received_at,
    raw.write_time(times.moment) as moment,
    events.payload::text as payload
from raw.dead_letters
inner join raw.events on events.load_xid = dead_letters.load_xid and events.seq = dead_letters.seq
left join lateral (
    select
        tracks.received_at,
        tracks.timestamp
    from iterable.tracks as tracks
    where tracks.id = events.message_id and events.collection is not null
) as tracks on true
cross join
    lateral (
        select case
            when tracks.received_at is not null then tracks.timestamp
            else raw.read_call_time(events.payload, events.received_at)
        end as moment
    ) as times
where
    dead_letters.destination_id = %(destination)s
    and dead_letters.source = %(source)s
    and dead_letters.next_try_at <= clock_timestamp() + make_interval(secs => %(moved)s)
order by dead_letters.seq
limit %(most)s
