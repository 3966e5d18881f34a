-- A scheduler reports every three seconds.
select
    host,
    process_id,
    extract(epoch from every)::float8 as every_seconds,
    started_at,
    state,
    clock_timestamp() - last_seen_at < interval '15 s' as alive,
    round(extract(epoch from clock_timestamp() - last_seen_at))::int as seen_seconds_ago,
    failures,
    last_error,
    next_run_at,
    last_success_at
from raw.schedules
order by state = 'standby', last_seen_at desc
