-- A replay ends where the live delivery is. Events after that come with the live delivery.
with numbered as (
    select coalesce(max(replay), 0) + 1 as replay from raw.delivery_cursors
    where destination_id = %(destination)s
)

insert into raw.delivery_cursors (
    destination_id, source, replay, start_snapshot, from_snapshot, end_snapshot, last_seq, selection
)
select
    live.destination_id,
    live.source,
    numbered.replay,
    '1:1:',
    '1:1:',
    coalesce(live.to_snapshot, live.from_snapshot),
    live.last_seq,
    %(selection)s
from raw.delivery_cursors as live
cross join numbered
where
    live.destination_id = %(destination)s
    and live.replay = 0
    and coalesce(live.to_snapshot, live.from_snapshot)::text <> '1:1:'
    and raw.read_tracks_snapshot(live.source) is not null
    and (cardinality(%(sources)s::text[]) = 0 or live.source = any(%(sources)s::text[]))
returning replay
