select
    readers.name,
    array_agg(readers.source order by readers.source),
    min(readers.created_at),
    exists(
        select from pg_roles
        where pg_roles.rolname = readers.name
    ),
    (
        select count(*) from pg_stat_activity
        where pg_stat_activity.usename = readers.name
    )
from raw.readers
group by readers.name
order by min(readers.created_at), readers.name
