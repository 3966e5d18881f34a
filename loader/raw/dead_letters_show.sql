select
    events.payload::text as payload,
    dead_letters.answer
from raw.dead_letters
inner join raw.events on events.load_xid = dead_letters.load_xid and events.seq = dead_letters.seq
where dead_letters.destination_id = %(destination)s and dead_letters.id = %(id)s
