{{ config(
    unique_key=['channel', 'campaign_id', 'template_id'],
) }}
{%- set group = {'channel': 'channel', 'campaign_id': 'coalesce(campaign_id, 0)', 'template_id': 'coalesce(template_id, 0)'} %}
{% call changed_keys() %}
    {{ changed_groups(group, skip_group=group, named=['campaign', 'template']) }}
{% endcall %}

with {{ totals_of_messages(group, near=['recipient_key', 'coalesce(campaign_id, 0)'], skip_group=group, sums=message_sums()) }}

select
    channel,
    campaign_id,
    template_id,
    {{ latest_name('campaign_name', 'campaign_id') }} as campaign_name,
    {{ latest_name('template_name', 'template_id') }} as template_name,
    first_sent_at,
    last_sent_at,
    {{ measures() }},
    {{ message_rates() }},
    skips
from totals
