with accepted as (
    delete from raw.dead_letters
    where id = any(%(ids)s::bigint[])
    returning destination_id, source, replay
)

update raw.delivery_cursors
set
    delivered = delivery_cursors.delivered + counted.letters,
    dead = delivery_cursors.dead - counted.letters
from (
    select
        destination_id,
        source,
        replay,
        count(*) as letters
    from accepted
    group by destination_id, source, replay
) as counted
where
    delivery_cursors.destination_id = counted.destination_id
    and delivery_cursors.source = counted.source
    and delivery_cursors.replay = counted.replay
