-- `behind` counts the collections with events that the marts have not read. The variables are those of all marts.
select
    marts.source,
    min(marts.filled_at) filter (where arrivals.mart is not null) as filled,
    count(*) filter (where marts.error is not null) as failed,
    max(marts.mart || ': ' || marts.error) filter (where marts.error is not null) as last_error,
    (
        select count(*)
        from raw.mart_inputs as read
        inner join raw.cursors on cursors.source = read.source and cursors.model = read.input
        where
            read.source = marts.source and read.mart = 'int_arrivals' and read.snapshot::text <> cursors.snapshot::text
    ) as behind,
    (
        select jsonb_object_agg(variable.key, variable.value)
        from raw.marts as made
        cross join jsonb_each(made.variables) as variable
        where made.source = marts.source
    ) as variables
from raw.marts
left join (values ('int_arrivals')) as arrivals (mart) on arrivals.mart = marts.mart
group by marts.source
order by marts.source
