-- A rare source must not cause a scan of all events, so only the last events of all sources are looked at.
select passed.message_id
from (
    select
        events.source,
        events.load_xid,
        events.seq,
        events.message_id,
        events.collection,
        events.received_at
    from raw.events
    where
        events.load_xid < pg_snapshot_xmax(coalesce(%(to_snapshot)s, %(from_snapshot)s)::pg_snapshot)
    order by events.load_xid desc
    limit %(most)s * 2
) as passed
left join lateral (
    select tracks.received_at
    from iterable.tracks as tracks
    where tracks.id = passed.message_id and passed.collection is not null
) as tracks on true
where
    passed.source = %(source)s
    and (
        pg_visible_in_snapshot(passed.load_xid, %(from_snapshot)s::pg_snapshot)
        or (
            pg_visible_in_snapshot(passed.load_xid, %(to_snapshot)s::pg_snapshot)
            and passed.seq <= %(position)s
        )
    )
    and (tracks.received_at is null or tracks.received_at = passed.received_at)
order by passed.load_xid desc
limit %(most)s
