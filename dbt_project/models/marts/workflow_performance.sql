{{ config(
    unique_key=['workflow_id', 'channel'],
) }}
{%- set group = {'workflow_id': 'workflow_id', 'channel': 'channel'} %}
{%- set in_workflow = 'workflow_id is not null' %}
{% call changed_keys() %}
    {{ changed_groups(group, condition=in_workflow, skip_group=group, skip_condition=in_workflow, named=['workflow']) }}
{% endcall %}

with {{ totals_of_messages(
    group, near=['recipient_key', 'workflow_id'], condition=in_workflow, skip_group=group, skip_condition=in_workflow,
    sums=message_sums()
) }}

select
    workflow_id,
    channel,
    {{ latest_name('workflow_name', 'workflow_id') }} as workflow_name,
    (
        select count(*)
        from {{ ref('int_workflow_campaigns') }} as campaigns
        where campaigns.workflow_id = totals.workflow_id and campaigns.channel = totals.channel
    ) as campaigns,
    first_sent_at,
    last_sent_at,
    {{ measures() }},
    {{ message_rates() }},
    skips
from totals
