{{ config(
    unique_key=['workflow_id', 'channel', 'campaign_id'],
) }}
{% call changed_keys() %}
    select workflow_id, channel, campaign_id
    from {{ changes_of('messages') }} as messages
    where workflow_id is not null and campaign_id is not null
{% endcall %}

with differences as (
    select workflow_id, channel, campaign_id, sum(sign) as messages
    from {{ signed_rows('messages') }} as messages
    where workflow_id is not null and campaign_id is not null
    group by workflow_id, channel, campaign_id
    /*+ union all
    select workflow_id, channel, campaign_id, messages
    from changed
    inner join {{ this }} as present using (workflow_id, channel, campaign_id) +*/
)

select workflow_id, channel, campaign_id, sum(messages)::bigint as messages
from differences
group by workflow_id, channel, campaign_id
having sum(messages) > 0
