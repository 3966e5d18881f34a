-- Of calls that are in no table, each has its time computed.
select count(*) as events
from raw.events
left join iterable.tracks as tracks
    on
        %(by_time)s
        and events.collection is not null
        and tracks.id = events.message_id
        and tracks.received_at = events.received_at
cross join
    lateral (
        select case
            when not %(by_time)s then events.received_at
            when tracks.id is not null then tracks.timestamp
            else raw.read_call_time(events.payload, events.received_at)
        end as moment
    ) as times
where
    events.source = %(source)s
    and times.moment >= coalesce(%(since)s::timestamptz, '-infinity')
    and times.moment < coalesce(%(until)s::timestamptz, 'infinity')
