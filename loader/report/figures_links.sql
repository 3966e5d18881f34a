-- The links in the period's messages, in descending order of the people who clicked.
with clicked as (
    select
        events.channel,
        coalesce(events.link, 'unknown') as link,
        messages.campaign_id,
        messages.recipient_key,
        events.is_machine
    from %(marts)s.events
    inner join %(marts)s.messages on messages.message_key = events.message_key
    where events.type = 'click' and messages.day between %(first_day)s and %(last_day)s
)

select
    channel,
    link,
    count(distinct campaign_id) as campaigns,
    count(*) filter (where not is_machine) as human_clicks,
    count(*) filter (where is_machine) as machine_clicks,
    count(distinct recipient_key) filter (where not is_machine) as unique_human_clicks,
    count(*) over () as number_of_rows
from clicked
group by channel, link
order by unique_human_clicks desc, human_clicks desc, link asc, channel asc
limit 20
