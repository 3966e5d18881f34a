{{ config(
    unique_key=['channel', 'campaign_id'],
) }}
{%- set group = {'channel': 'channel', 'campaign_id': 'coalesce(campaign_id, 0)'} %}
{% call changed_keys() %}
    {{ changed_groups(group, skip_group=group, named=['campaign']) }}
{% endcall %}

with {{ totals_of_messages(group, near=['recipient_key', 'coalesce(campaign_id, 0)'], skip_group=group) }}

select
    channel,
    campaign_id,
    {{ latest_name('campaign_name', 'campaign_id') }} as campaign_name,
    {{ latest_name('campaign_workflow_id', 'campaign_id') }}::bigint as workflow_id,
    {{ latest_name('campaign_workflow_name', 'campaign_id') }} as workflow_name,
    transactional_messages > 0 as is_transactional,
    transactional_messages,
    first_sent_at,
    last_sent_at,
    {{ measures() }},
    {{ message_rates() }},
    skips
from totals
