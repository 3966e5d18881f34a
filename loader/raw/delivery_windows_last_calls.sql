select
    events.source,
    events.seq,
    events.load_xid::text as load_xid,
    events.message_id,
    to_char(events.received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as received_at,
    to_char(times.moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as moment,
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
