select
    dead_letters.id,
    dead_letters.attempts,
    events.seq,
    events.load_xid::text as load_xid,
    events.message_id,
    to_char(events.received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as received_at,
    case
        when times.moment between '0001-01-01' and '9999-12-31'
            then to_char(times.moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    end as moment,
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
