select
    count(*) as events,
    max(events.seq) as last_seq
from raw.events
where
    events.source = %(source)s
    and (
        (
            events.load_xid >= pg_snapshot_xmax(%(from_snapshot)s::pg_snapshot)
            and events.load_xid < pg_snapshot_xmax(%(to_snapshot)s::pg_snapshot)
        )
        or events.load_xid = any(array(select pg_snapshot_xip(%(from_snapshot)s::pg_snapshot)))
    )
    and pg_visible_in_snapshot(events.load_xid, %(to_snapshot)s::pg_snapshot)
    and events.seq > %(position)s
