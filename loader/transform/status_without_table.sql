-- The last run could have seen the event, and there is still no table.
select
    collections.source,
    collections.event,
    collections.first_seen_at as first_seen
from raw.collections
where
    collections.collection <> ''
    and collections.first_seen_at < (
        select max(transforms.started_at) from raw.transforms
        where transforms.status = 'success'
    )
    and not exists (
        select from raw.cursors
        where cursors.source = collections.source and cursors.model = collections.collection
    )
order by collections.source, collections.number
