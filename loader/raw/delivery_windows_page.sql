-- Of several events with one id, tracks has the event whose time of receipt is in its row. The other events are repeated.
select
    page.seq,
    page.load_xid::text as load_xid,
    page.message_id,
    raw.write_time(page.received_at) as received_at,
    raw.write_time(times.moment) as moment,
    case when %(with_native)s then page.payload else page.payload - 'native' end::text as payload,
    tracks.received_at is not null and tracks.received_at <> page.received_at as is_repeated,
    not %(by_time)s
    or (
        times.moment >= coalesce(%(since)s::timestamptz, '-infinity')
        and times.moment < coalesce(%(until)s::timestamptz, 'infinity')
    ) as is_selected,
    page.found < %(events)s and page.whole_size <= %(size)s as is_last
from (
    select
        sized.*,
        sum(sized.size) over (order by sized.seq) - sized.size as size_before,
        count(*) over () as found,
        sum(sized.size) over () as whole_size
    from (
        select
            events.seq,
            events.load_xid,
            events.message_id,
            events.received_at,
            events.collection,
            events.payload,
            pg_column_size(events.payload) as size
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
            and (
                %(by_time)s
                or (
                    events.received_at >= coalesce(%(since)s::timestamptz, '-infinity')
                    and events.received_at < coalesce(%(until)s::timestamptz, 'infinity')
                )
            )
        order by events.seq
        limit %(events)s
    ) as sized
) as page
left join lateral (
    select
        tracks.received_at,
        tracks.timestamp
    from iterable.tracks as tracks
    where tracks.id = page.message_id and page.collection is not null
) as tracks on true
cross join
    lateral (
        select case
            when tracks.received_at is not null then tracks.timestamp
            else raw.read_call_time(page.payload, page.received_at)
        end as moment
    ) as times
where page.size_before < %(size)s
order by page.seq
