select
    events.source,
    events.seq,
    events.load_xid::text as load_xid,
    events.message_id,
    raw.write_time(events.received_at) as received_at,
    raw.write_time(times.moment) as moment,
    events.payload::text as payload
from (
    select * from raw.events
    order by load_xid desc
    limit %(most)s
) as events
cross join
    lateral (
        select raw.read_call_time(events.payload, events.received_at) as moment
    ) as times
order by events.seq
