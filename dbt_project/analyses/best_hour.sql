-- At which local weekday and hour of sending is the human click rate highest?
with sent as (
    select
        sent_at at time zone '{{ var("marts_time_zone") }}' as local_time,
        delivered > 0 as is_delivered,
        human_clicks > 0 as is_clicked
    from {{ ref('messages') }}
    where channel = 'email' and sent_at is not null
)

select
    trim(to_char(local_time, 'Day')) as weekday,
    extract(hour from local_time)::integer as hour,
    count(*) filter (where is_delivered) as delivered,
    round(count(*) filter (where is_clicked)::numeric / nullif(count(*) filter (where is_delivered), 0), 4) as human_click_rate
from sent
group by trim(to_char(local_time, 'Day')), extract(isodow from local_time), extract(hour from local_time)
having count(*) filter (where is_delivered) >= 20
order by human_click_rate desc, extract(isodow from local_time), hour
limit 20
