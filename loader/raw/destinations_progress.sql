-- Only events after the cursor are counted, and not more than 10,000 of them.
with cursors as materialized (
    select
        delivery_cursors.*,
        coalesce(delivery_cursors.end_snapshot, raw.read_tracks_snapshot(delivery_cursors.source)) as reach
    from raw.delivery_cursors
)

select
    destinations.name as destination,
    cursors.source,
    cursors.replay,
    case when cursors.finished_at is null then waiting.events else 0 end as waiting,
    case when cursors.finished_at is null then waiting.oldest_seconds end as oldest_seconds,
    cursors.delivered,
    cursors.filtered,
    cursors.repeated,
    cursors.dead,
    (
        select count(*) from raw.dead_letters
        where
            dead_letters.destination_id = cursors.destination_id
            and dead_letters.source = cursors.source
            and dead_letters.replay = cursors.replay
            and dead_letters.next_try_at is not null
    ) as retrying,
    cursors.finished_at is not null as is_finished
from cursors
inner join raw.destinations on destinations.id = cursors.destination_id
cross join
    lateral (
        select
            count(*) as events,
            extract(epoch from clock_timestamp() - min(events.landed_at))::float8 as oldest_seconds
        from (
            (
                select
                    events.landed_at,
                    events.load_xid,
                    events.seq
                from raw.events
                where
                    events.source = cursors.source
                    and events.load_xid >= pg_snapshot_xmax(cursors.from_snapshot)
                order by events.load_xid
                limit 10000
            )
            union all
            (
                select
                    events.landed_at,
                    events.load_xid,
                    events.seq
                from raw.events
                where
                    events.source = cursors.source
                    and events.load_xid = any(array(select pg_snapshot_xip(cursors.from_snapshot)))
                limit 10000
            )
        ) as events
        where
            pg_visible_in_snapshot(events.load_xid, cursors.reach)
            and not (
                cursors.to_snapshot is not null
                and pg_visible_in_snapshot(events.load_xid, cursors.to_snapshot)
                and events.seq <= cursors.position
            )
    ) as waiting
order by destinations.name, cursors.replay, cursors.source
