select
    sent.campaign_name,
    count(distinct sent.message_id) as sent,
    count(distinct opened.message_id) as opened,
    count(distinct clicked.message_id) as clicked
from iterable.email_delivered as sent
left join iterable.email_opened as opened
    on
        sent.message_id = opened.message_id
        and opened.is_bot is not true
        and opened.proxy_source is distinct from 'Apple'
left join iterable.email_link_clicked as clicked
    on
        sent.message_id = clicked.message_id
        and clicked.is_bot is not true
group by sent.campaign_name
order by sent desc, sent.campaign_name asc
limit 5
