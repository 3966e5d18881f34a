-- The window ends after some number of events, at the end of a transaction. It never exceeds the events of tracks, or the
-- end of a replay. A snapshot of tracks that does not include the cursor's own is too old: a later run has a newer one.
with present as materialized (
    select
        from_snapshot,
        coalesce(end_snapshot, raw.read_tracks_snapshot(source)) as reach
    from raw.delivery_cursors
    where
        destination_id = %(destination)s
        and source = %(source)s
        and replay = %(replay)s
        and to_snapshot is null
        and finished_at is null
),

last as materialized (
    select events.load_xid
    from raw.events
    where events.load_xid >= (select pg_snapshot_xmax(present.from_snapshot) from present)
    order by events.load_xid
    limit 1 offset %(events)s
)

update raw.delivery_cursors
set
    to_snapshot = coalesce(
        raw.cut_snapshot(present.reach, (last.load_xid::text::bigint + 1)::text::xid8),
        present.reach
    ),
    position = 0,
    last_seq = greatest(
        delivery_cursors.last_seq,
        (select sequence.last_value from raw.events_seq_seq as sequence)
    ),
    filters = destinations.filters,
    updated_at = clock_timestamp()
from present
left join last on true
cross join raw.destinations
where
    delivery_cursors.destination_id = %(destination)s
    and delivery_cursors.source = %(source)s
    and delivery_cursors.replay = %(replay)s
    and delivery_cursors.to_snapshot is null
    and destinations.id = delivery_cursors.destination_id
    and present.reach::text <> present.from_snapshot::text
    and raw.snapshot_includes(present.reach, present.from_snapshot)
returning
    delivery_cursors.destination_id,
    delivery_cursors.source,
    delivery_cursors.replay,
    delivery_cursors.from_snapshot::text as from_snapshot,
    delivery_cursors.to_snapshot::text as to_snapshot,
    delivery_cursors.end_snapshot::text as end_snapshot,
    delivery_cursors.position,
    delivery_cursors.filters,
    delivery_cursors.selection
