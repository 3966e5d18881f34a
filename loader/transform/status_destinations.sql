select
    name,
    kind,
    case when pause_reason is null then state else format('%s (%s)', state, pause_reason) end as state,
    state_since as since,
    last_delivered_at as last_delivery,
    last_error as problem
from raw.destinations
order by name
