-- A tool may open a session for each query, and have no session at a check. The total of sessions shows its sessions.
select
    (
        select count(*) from pg_stat_activity
        where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()
    ),
    (select sum(sessions) from pg_stat_database)
