select
    destination_id,
    source,
    replay,
    from_snapshot::text as from_snapshot,
    to_snapshot::text as to_snapshot,
    end_snapshot::text as end_snapshot,
    position,
    filters,
    selection
from raw.delivery_cursors
where destination_id = %(destination)s and replay = %(replay)s and finished_at is null
order by source
