select
    source,
    collection,
    message_id,
    seq,
    payload::text
from raw.events
where
    source = any(%(sources)s)
    and collection is not null
    and load_xid >= pg_snapshot_xmin(%(snapshot)s::pg_snapshot)
    and not pg_visible_in_snapshot(load_xid, %(snapshot)s::pg_snapshot)
order by seq
