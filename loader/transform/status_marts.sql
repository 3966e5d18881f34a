-- `waiting` counts the landed events that the marts have not read, and `age_seconds` is the age of the oldest of them.
-- `last_error` is the error of a mart that failed, rather than of a mart behind it. The variables are those of all marts.
with books as (
    select
        source,
        max(filled_at) filter (where mart = 'int_arrivals') as filled,
        count(*) filter (where error is not null) as failed,
        coalesce(
            min(mart || ': ' || error) filter (where error <> 'A model before this one failed.'),
            min(mart || ': ' || error)
        ) as last_error
    from raw.marts
    group by source
),

unread as (
    select
        read.source,
        count(*) as events,
        extract(epoch from clock_timestamp() - min(events.landed_at))::float8 as age_seconds
    from raw.mart_inputs as read
    inner join raw.events
        on
            events.source = read.source
            and events.collection = read.input
            and events.load_xid >= pg_snapshot_xmin(read.snapshot)
    where read.mart = 'int_arrivals' and not pg_visible_in_snapshot(events.load_xid, read.snapshot)
    group by read.source
)

select
    books.source,
    books.filled,
    coalesce(unread.events, 0) as waiting,
    unread.age_seconds,
    books.failed,
    books.last_error,
    (
        select jsonb_object_agg(variable.key, variable.value)
        from raw.marts
        cross join jsonb_each(marts.variables) as variable
        where marts.source = books.source
    ) as variables
from books
left join unread on unread.source = books.source
order by books.source
