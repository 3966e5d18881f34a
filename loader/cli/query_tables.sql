select format('%I.%I', pg_namespace.nspname, pg_class.relname)
from pg_class
inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
where
    pg_class.relkind in ('r', 'v', 'm', 'p', 'f')
    and not pg_class.relispartition
    and pg_namespace.nspname not like 'pg\_%'
    and pg_namespace.nspname <> 'information_schema'
order by 1
