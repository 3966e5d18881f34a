-- A rescan holds this lock for minutes, so the wait has no limit.
with before as materialized (select current_setting('lock_timeout') as value)

select
    set_config('lock_timeout', '0', true),
    pg_advisory_xact_lock(%(key)s),
    set_config('lock_timeout', value, true)
from before
