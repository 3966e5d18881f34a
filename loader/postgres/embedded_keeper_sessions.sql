-- A tool may open a session for each query and be gone at every check. The total of sessions shows that it was there.
select
    (
        select count(*) from pg_stat_activity
        where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()
    ),
    (select sum(sessions) from pg_stat_database)
