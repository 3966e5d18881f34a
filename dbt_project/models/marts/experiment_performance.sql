{{ config(
    unique_key=['experiment_id', 'channel', 'campaign_id', 'template_id'],
) }}
{%- set group = {
    'experiment_id': 'experiment_id', 'channel': 'channel', 'campaign_id': 'coalesce(campaign_id, 0)',
    'template_id': 'coalesce(template_id, 0)',
} %}
{%- set in_experiment = 'experiment_id is not null' %}
{% call changed_keys() %}
    {{ changed_groups(group, condition=in_experiment, named=['campaign', 'template']) }}
{% endcall %}

with {{ totals_of_messages(
    group, near=['recipient_key', 'coalesce(campaign_id, 0)'], condition=in_experiment, sums=message_sums()
) }}

select
    experiment_id,
    channel,
    campaign_id,
    template_id,
    {{ latest_name('campaign_name', 'campaign_id') }} as campaign_name,
    {{ latest_name('template_name', 'template_id') }} as template_name,
    first_sent_at,
    last_sent_at,
    {{ measures() }},
    {{ message_rates() }}
from totals
