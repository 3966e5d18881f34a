-- The served tables with their columns and comments, as the database has them.
select
    pg_namespace.nspname as schema,
    pg_class.relname as table,
    coalesce(obj_description(pg_class.oid, 'pg_class'), '') as table_description,
    pg_attribute.attname as "column",
    format_type(pg_attribute.atttypid, pg_attribute.atttypmod) as data_type,
    coalesce(col_description(pg_class.oid, pg_attribute.attnum), '') as description
from raw.cursors
inner join pg_class on pg_class.oid = to_regclass(format('%I.%I', cursors.source, cursors.model))
inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
inner join pg_attribute
    on
        pg_attribute.attrelid = pg_class.oid
        and pg_attribute.attnum > 0
        and not pg_attribute.attisdropped
order by pg_namespace.nspname, pg_class.relname, pg_attribute.attnum
