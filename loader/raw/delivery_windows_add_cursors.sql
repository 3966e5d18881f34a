-- A source that is younger than the destination begins with its first event.
insert into raw.delivery_cursors (destination_id, source, start_snapshot, from_snapshot)
select
    destinations.id,
    sources.schema_name,
    '1:1:',
    '1:1:'
from raw.destinations
cross join raw.sources
where
    destinations.id = %(destination)s
    and not exists (
        select from raw.delivery_cursors
        where
            delivery_cursors.destination_id = destinations.id
            and delivery_cursors.source = sources.schema_name
            and delivery_cursors.replay = 0
    )
on conflict do nothing
