-- A tool may open a session per query, and be gone whenever we look: the sum of sessions shows that it was there.
select
    (
        select count(*) from pg_stat_activity
        where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()
    ),
    (select sum(sessions) from pg_stat_database)
