select
    destination,
    source,
    events,
    delivered,
    filtered,
    repeated,
    dead
from raw.delivery_conservation
where events <> delivered + filtered + repeated + dead
order by destination, source
