insert into raw.delivery_cursors (destination_id, source, start_snapshot, from_snapshot, last_seq)
select
    %(destination)s,
    sources.schema_name,
    begin.snapshot,
    begin.snapshot as done,
    (select sequence.last_value from raw.events_seq_seq as sequence) as last_seq
from raw.sources
cross join (
    select case when %(from_start)s then '1:1:'::pg_snapshot else pg_current_snapshot() end as snapshot
) as begin
