-- Calls other than track count as well. Such calls add no row, but a run moves the snapshot cursor past these calls, so
-- that the next check does not find them again.
with done as materialized (
    select coalesce(
        (
            select transforms.snapshot from raw.transforms
            where transforms.whole
            order by transforms.started_at desc limit 1
        ),
        '1:1:'
    )::pg_snapshot as snapshot
)

select
    exists (
        select from raw.events
        where load_xid >= (select pg_snapshot_xmax(done.snapshot) from done)
    )
    or exists (
        select from raw.events
        where load_xid = any(array(select pg_snapshot_xip(done.snapshot) from done))
    )
