{{ config(
    unique_key=['recipient_domain', 'day'],
    meta={'variables': ['marts_time_zone']},
) }}
{%- set group = {'recipient_domain': 'coalesce(' ~ short_text('recipient_domain') ~ ", 'unknown')", 'day': 'day'} %}
{%- set is_email = "channel = 'email'" %}
{%- set sums = [
    'messages', 'sends', 'delivered', 'bounces', 'hard_bounces', 'soft_bounces', 'block_bounces', 'other_bounces', 'complaints',
    'unsubscribes',
] %}
{%- set uniques = {
    'unique_delivered': 'delivered', 'unique_human_opens': 'human_opens', 'unique_human_clicks': 'human_clicks',
} %}
{% call changed_keys() %}
    {{ changed_groups(group, condition=is_email) }}
{% endcall %}

with {{ totals_of_messages(
    group, near=['recipient_key', 'day'], condition=is_email, sums=sums, uniques=uniques, with_times=false
) }}

select
    recipient_domain,
    day,
    {{ (sums + uniques.keys() | list) | join(",\n    ") }},
    {{ rate('delivered', 'sends') }} as delivery_rate,
    {{ rate('hard_bounces', 'sends') }} as hard_bounce_rate,
    {{ rate('soft_bounces', 'sends') }} as soft_bounce_rate,
    {{ rate('block_bounces', 'sends') }} as block_rate,
    {{ rate('complaints', 'delivered') }} as complaint_rate,
    {{ rate('unique_human_opens', 'unique_delivered') }} as human_open_rate
from totals
