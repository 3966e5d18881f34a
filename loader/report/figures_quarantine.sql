-- The messages of the source that wait in the quarantine, of all times, by reason.
select
    reason,
    count(*) as messages,
    max(received_at) as last_received_at
from raw.quarantine
where source = %(source_schema)s and resolved_at is null
group by reason
order by count(*) desc, reason asc
