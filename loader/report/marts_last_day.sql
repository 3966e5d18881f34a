-- The last day with events that is over; if none is over, the last day with events; without events, today.
select
    coalesce(
        max(day) filter (where day < (now() at time zone %(time_zone)s)::date),
        max(day),
        (now() at time zone %(time_zone)s)::date
    ) as last_day
from %(marts)s.channel_daily
