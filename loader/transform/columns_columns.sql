select
    cursors.source,
    cursors.model as table,
    pg_attribute.attname as "column",
    format_type(pg_attribute.atttypid, pg_attribute.atttypmod) as type,
    case
        when columns.declared then 'declared'
        when not columns.declared then 'found'
        else 'unknown'
    end as origin,
    coalesce(
        (
            select string_agg((select string_agg(key, '.') from jsonb_array_elements_text(path) as key), ', ')
            from jsonb_array_elements(columns.paths) as path
        ),
        ''
    ) as path,
    columns.added_at as first_seen,
    columns.first_event_id as first_event
from raw.cursors
inner join pg_attribute
    on
        pg_attribute.attrelid = to_regclass(format('%%I.%%I', cursors.source, cursors.model))
        and pg_attribute.attnum > 0
        and not pg_attribute.attisdropped
left join raw.columns
    on
        columns.source = cursors.source
        and columns.model = cursors.model
        and columns.column_name = pg_attribute.attname
where
    (cursors.source, cursors.model) in (
        select
            chosen.source,
            chosen.model
        from unnest(%(sources)s::text[], %(tables)s::text[]) as chosen (source, model)
    )
order by cursors.source, cursors.model, pg_attribute.attnum
