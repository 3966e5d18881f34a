select
    dead_letters.id,
    dead_letters.source,
    dead_letters.message_id,
    events.payload ->> 'event' as event,
    dead_letters.status,
    dead_letters.reason,
    dead_letters.attempts,
    dead_letters.died_at,
    dead_letters.next_try_at
from raw.dead_letters
left join raw.events on events.load_xid = dead_letters.load_xid and events.seq = dead_letters.seq
where dead_letters.destination_id = %(destination)s
order by dead_letters.seq
limit %(most)s
