select
    pg_namespace.nspname as source,
    pg_class.relname as table,
    format('%I.%I', pg_namespace.nspname, pg_class.relname) as name
from pg_class
inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
where
    pg_class.relkind in ('r', 'p')
    and not pg_class.relispartition
    and pg_namespace.nspname not like 'pg\_%'
    and pg_namespace.nspname <> 'information_schema'
    and has_schema_privilege(pg_namespace.oid, 'usage')
    and has_table_privilege(pg_class.oid, 'select')
order by 1, 2
