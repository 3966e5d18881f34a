-- At which step of a journey do people drop? A step is a campaign of the journey, in the order of its first message.
with people as (
    select
        workflow_id,
        max(workflow_name) as workflow_name,
        campaign_id,
        max(campaign_name) as campaign_name,
        min(sent_at) as first_sent_at,
        count(distinct recipient_key) filter (where sends > 0) as reached,
        count(distinct recipient_key) filter (where human_opens + human_clicks > 0) as engaged,
        count(distinct recipient_key) filter (where recipient_unsubscribes > 0) as unsubscribed
    from {{ ref('messages') }}
    where workflow_id is not null and campaign_id is not null
    group by workflow_id, campaign_id
)

select
    workflow_name,
    row_number() over steps as step,
    campaign_name,
    reached,
    round(reached::numeric / nullif(first_value(reached) over steps, 0), 3) as share_of_first_step,
    round(engaged::numeric / nullif(reached, 0), 3) as engaged_rate,
    round(unsubscribed::numeric / nullif(reached, 0), 4) as unsubscribe_rate
from people
window steps as (partition by workflow_id order by first_sent_at, campaign_id)
order by workflow_id, step
