select count(*) as events
from raw.events
where
    events.received_at >= coalesce(%(since)s::timestamptz, '-infinity')
    and events.received_at < coalesce(%(until)s::timestamptz, 'infinity')
    and (cardinality(%(sources)s::text[]) = 0 or events.source = any(%(sources)s::text[]))
