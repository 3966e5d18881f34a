-- The period's messages of which an event came but not the send, by channel.
select
    channel,
    count(*) as messages,
    count(*) filter (where not has_send) as messages_without_send,
    round(count(*) filter (where not has_send)::numeric / count(*), 6) as share_without_send,
    max(last_event_at) as last_event_at
from %(marts)s.messages
where day between %(first_day)s and %(last_day)s
group by channel
order by count(*) desc, channel asc
