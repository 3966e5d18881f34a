{{ config(
    unique_key=['channel', 'campaign_id', 'step'],
) }}
{% call changed_keys() %}
    select channel, campaign_id, step
    from (
        select channel, campaign_id
        from {{ changes_of('campaign_recipients') }} as recipients
        union
        select channel, campaign_id
        from {{ changes_of('int_converted_recipients') }} as recipients
    ) as campaigns
    cross join generate_series(1, 5) as step
{% endcall %}

with steps (step, step_name) as (
    values (1, 'sent'), (2, 'delivered'), (3, 'engaged'), (4, 'clicked'), (5, 'converted')
),

reached as (
    select channel, campaign_id, sign, {{ funnel_step() }} as last_step
    from {{ signed_rows('campaign_recipients') }} as recipients
),

differences as (
    select
        reached.channel,
        reached.campaign_id,
        steps.step,
        sum(case when reached.last_step >= steps.step then reached.sign else 0 end) as recipients,
        sum(reached.sign) as known_recipients
    from reached
    cross join steps
    group by reached.channel, reached.campaign_id, steps.step
    union all
    select channel, campaign_id, 5 as step, sum(sign) as recipients, 0 as known_recipients
    from {{ signed_rows('int_converted_recipients') }} as recipients
    group by channel, campaign_id
    /*+ union all
    select channel, campaign_id, step, recipients, known_recipients
    from changed
    inner join {{ this }} as present using (channel, campaign_id, step) +*/
),

totals as (
    select
        channel,
        campaign_id,
        step,
        sum(recipients)::bigint as recipients,
        sum(known_recipients)::bigint as known_recipients
    from differences
    group by channel, campaign_id, step
    having sum(known_recipients) > 0
),

compared as (
    select
        *,
        first_value(recipients) over (partition by channel, campaign_id order by step) as recipients_of_first,
        lag(recipients, 1, recipients) over (partition by channel, campaign_id order by step) as recipients_of_previous
    from totals
)

select
    compared.channel,
    compared.campaign_id,
    compared.step,
    steps.step_name,
    compared.recipients,
    {{ rate('compared.recipients', 'compared.recipients_of_first') }} as share_of_first,
    {{ rate('compared.recipients', 'compared.recipients_of_previous') }} as share_of_previous,
    compared.known_recipients
from compared
inner join steps on steps.step = compared.step
