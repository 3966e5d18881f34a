-- The last run that filled all tables, the last run that filled the marts, and the marts that failed since.
select
    (
        select transforms.finished_at
        from raw.transforms
        where transforms.whole
        order by transforms.started_at desc
        limit 1
    ) as tables_filled_at,
    max(filled_at) as marts_filled_at,
    string_agg(mart, ', ' order by mart) filter (where error is not null) as failed_marts
from raw.marts
where source = %(source_schema)s
