select
    cursors.source,
    cursors.model as table,
    raw.count_rows(cursors.source, cursors.model) as rows,
    (
        select count(*)
        from raw.events
        where
            events.source = cursors.source
            and (events.collection = cursors.model or (cursors.model = 'tracks' and events.collection is not null))
            and events.load_xid >= pg_snapshot_xmin(coalesce(cursors.snapshot, '1:1:'))
            and not pg_visible_in_snapshot(events.load_xid, coalesce(cursors.snapshot, '1:1:'))
    ) as waiting
from raw.cursors
order by cursors.source, cursors.model
