-- `waiting` counts the landed events that the marts have not read, and `age_seconds` is the age of the oldest of them.
-- `last_error` is the error of a mart that failed by itself, if there is one. The variables are those of all marts.
with books as (
    select
        source,
        max(filled_at) filter (where mart = 'int_arrivals') as filled,
        count(*) filter (where error is not null) as failed,
        (
            array_agg(mart || ': ' || error order by error = 'A model before this one failed.', mart)
            filter (where error is not null)
        )[1] as last_error
    from raw.marts
    group by source
)

select
    books.source,
    books.filled,
    unread.events as waiting,
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
cross join lateral (
    select
        count(*) as events,
        extract(epoch from clock_timestamp() - min(events.landed_at))::float8 as age_seconds
    from raw.events
    inner join raw.mart_inputs as read on read.source = events.source and read.input = events.collection
    where
        read.source = books.source
        and read.mart = 'int_arrivals'
        and events.load_xid >= (
            select min(pg_snapshot_xmin(oldest.snapshot))
            from raw.mart_inputs as oldest
            where oldest.source = books.source and oldest.mart = 'int_arrivals'
        )
        and not pg_visible_in_snapshot(events.load_xid, read.snapshot)
) as unread
order by books.source
