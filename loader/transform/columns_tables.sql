select
    cursors.source,
    cursors.model as table,
    count(*) as columns,
    count(*) filter (where not columns.declared) as found,
    max(columns.added_at) filter (where not columns.declared) as last_found
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
where %(source)s::text is null or cursors.source = %(source)s
group by cursors.source, cursors.model
order by cursors.source, cursors.model
