-- The events of each day, by channel. Events count on the day on which they happened.
select
    channel,
    day,
    sends,
    bounces,
    human_opens,
    human_clicks
from %(marts)s.channel_daily
where day between %(first_day)s and %(last_day)s and channel <> 'none'
order by day, channel
