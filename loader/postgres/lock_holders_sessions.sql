-- The oldest transactions come first, because they are the most likely cause.
select
    format('process %s', pg_locks.pid)
    || coalesce(format(' of user %s', pg_stat_activity.usename), '')
    || coalesce(format(' (%s)', nullif(pg_stat_activity.application_name, '')), '')
    || format(', in a transaction since %s, with locks on ', date_trunc('second', min(pg_stat_activity.xact_start)))
    || string_agg(distinct format('%s.%s', pg_namespace.nspname, pg_class.relname), ', ')
from pg_locks
inner join pg_class on pg_class.oid = pg_locks.relation
inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
inner join pg_stat_activity on pg_stat_activity.pid = pg_locks.pid
where
    pg_locks.locktype = 'relation'
    and pg_locks.database = (
        select pg_database.oid from pg_database
        where pg_database.datname = current_database()
    )
    and pg_locks.granted
    and pg_class.relkind in ('r', 'p', 'v', 'm')
    and pg_locks.pid <> pg_backend_pid()
    and pg_namespace.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
group by pg_locks.pid, pg_stat_activity.usename, pg_stat_activity.application_name
order by min(pg_stat_activity.xact_start)
limit 3
