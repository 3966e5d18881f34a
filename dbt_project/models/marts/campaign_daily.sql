{{ config(
    unique_key=['channel', 'campaign_id', 'day'],
    meta={'variables': ['marts_time_zone']},
) }}
{%- set group = {'channel': 'channel', 'campaign_id': 'coalesce(campaign_id, 0)', 'day': 'day'} %}
{% call changed_keys() %}
    {{ changed_groups(group, skip_group=group, named=['campaign']) }}
{% endcall %}

with {{ totals_of_messages(
    group, near=['recipient_key', 'coalesce(campaign_id, 0)', 'day'], skip_group=group, sums=message_sums(), with_times=false
) }}

select
    channel,
    campaign_id,
    day,
    {{ latest_name('campaign_name', 'campaign_id') }} as campaign_name,
    {{ measures() }},
    {{ message_rates() }},
    skips
from totals
