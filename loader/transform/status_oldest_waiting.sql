select min(events.landed_at)
from raw.events
left join raw.cursors as own on own.source = events.source and own.model = events.collection
left join raw.cursors as tracks on tracks.source = events.source and tracks.model = 'tracks'
where
    events.collection is not null
    and not coalesce(
        pg_visible_in_snapshot(events.load_xid, tracks.snapshot)
        and (own.model is null or pg_visible_in_snapshot(events.load_xid, own.snapshot)),
        false
    )
