-- Why was a message not sent?
{%- for channel, collection in [
    ('email', 'email_send_skip'), ('push', 'push_send_skip'), ('sms', 'sms_send_skip'), ('in_app', 'in_app_send_skip'),
    ('web_push', 'web_push_send_skip'),
] %}
{{ "union all" if not loop.first }}
select '{{ channel }}' as channel, reason, count(*) as skips
from {{ ref(collection) }}
group by reason
{%- endfor %}
order by skips desc, channel, reason
