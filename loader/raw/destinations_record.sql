-- A pause by a person, or because the receiver refuses too many events, ends by a person alone.
update raw.destinations
set
    state = case when kept.is_paused then destinations.state else %(state)s end,
    pause_reason = case when kept.is_paused then destinations.pause_reason else %(pause_reason)s end,
    last_error = case when kept.is_paused then destinations.last_error else %(error)s end,
    state_since = case
        when
            kept.is_paused
            or (destinations.state, destinations.pause_reason) is not distinct from (%(state)s, %(pause_reason)s)
            then destinations.state_since
        else clock_timestamp()
    end,
    next_try_at = case
        when not kept.is_paused then clock_timestamp() + make_interval(secs => %(next_try)s)
    end,
    requests = (
        select coalesce(jsonb_object_agg(summed.code, summed.number), '{}')
        from (
            select
                entries.code,
                sum(entries.number::bigint) as number
            from (
                select * from jsonb_each_text(destinations.requests)
                union all
                select * from jsonb_each_text(%(requests)s)
            ) as entries (code, number)
            group by entries.code
        ) as summed
    ),
    notes = (
        select coalesce(jsonb_object_agg(summed.note, summed.number), '{}')
        from (
            select
                entries.note,
                sum(entries.number::bigint) as number
            from (
                select * from jsonb_each_text(destinations.notes)
                union all
                select * from jsonb_each_text(%(notes)s)
            ) as entries (note, number)
            group by entries.note
            order by sum(entries.number::bigint) desc
            limit 100
        ) as summed
    ),
    last_delivered_at = case when %(has_delivered)s then clock_timestamp() else destinations.last_delivered_at end
from (
    select
        destinations.id,
        destinations.state = 'paused' and destinations.pause_reason <> 'config' as is_paused
    from raw.destinations
    where destinations.id = %(id)s
    for update
) as kept
where destinations.id = kept.id
