{#- The measures of the marts over sets of messages, and their rates. docs/marts.md lists all formulas. -#}

{#- The counts of a set of messages that add up. -#}
{% macro message_sums() %}
    {{ return([
        'messages', 'messages_without_send', 'sends', 'receipts', 'bounces', 'hard_bounces', 'soft_bounces', 'block_bounces',
        'other_bounces', 'delivered', 'opens', 'human_opens', 'clicks', 'human_clicks', 'complaints', 'unsubscribes',
        'recipient_unsubscribes', 'preference_visits', 'uninstalls', 'replies',
    ]) }}
{% endmacro %}


{#- The counts of distinct recipients, and the condition on a recipient's messages. -#}
{% macro recipient_counts() %}
    {{ return({
        'unique_sends': 'sends', 'unique_bounces': 'bounces', 'unique_delivered': 'delivered', 'unique_opens': 'opens',
        'unique_human_opens': 'human_opens', 'unique_clicks': 'clicks', 'unique_human_clicks': 'human_clicks',
        'unique_opens_or_clicks': 'opens + clicks', 'unique_human_opens_or_clicks': 'human_opens + human_clicks',
        'unique_complaints': 'complaints', 'unique_unsubscribes': 'unsubscribes',
        'unique_recipient_unsubscribes': 'recipient_unsubscribes', 'unique_preference_visits': 'preference_visits',
    }) }}
{% endmacro %}


{#- The sums of messages in a group, one column each. A sum of integers takes half the time of a sum of bigint. -#}
{% macro sum_messages(sums) -%}
    {%- for name in sums %}
    {%- if name == 'messages' %}
    count(*) as messages
    {%- elif name == 'messages_without_send' %}
    count(*) filter (where not has_send) as messages_without_send
    {%- else %}
    sum({{ name }}::int) as {{ name }}
    {%- endif %}{{ "," if not loop.last }}
    {%- endfor %}
{%- endmacro %}


{#-
    The CTEs `recipients`, `differences` and `totals`: the measures of messages by group.

    Distinct recipients do not add up, so `recipients` has one row per group and recipient. In an increment, `recipients` has
    the changed recipients before and after, `differences` their difference and the present row of the mart, and
    `totals` the sum of both. So a group of any size costs as much as its changed recipients.

    The first and last send are exceptions. When a send that was the first of its group is gone, `totals` looks for the
    next one in `messages`.

    Args:
        group: The columns of the group, and their SQL over `messages`.
        near: SQL expressions over `messages`, with an index: messages of one group and recipient agree in them.
        condition: The condition for messages.
        skip_group: The columns of the group, and their SQL over `events`; none where skips are not counted.
        skip_condition: The condition for skips.
        sums, uniques: The measures.
        with_times: Whether the mart has the first and last send.
-#}
{% macro totals_of_messages(group, near, condition='true', skip_group=none, skip_condition='true', sums=none, uniques=none, with_times=true) -%}
    {%- set sums = sums or message_sums() + ['transactional_messages'] -%}
    {%- set uniques = uniques or recipient_counts() -%}
    {%- set names = group.keys() | join(", ") -%}
    {%- set grouped = [] -%}
    {%- set same_group = [] -%}
    {%- for name, expression in group.items() -%}
        {%- do grouped.append(expression ~ " as " ~ name) -%}
        {%- do same_group.append("of_group." ~ name ~ " = summed." ~ name) -%}
    {%- endfor -%}
    {%- set grouped = grouped | join(", ") -%}
    {%- set same_group = same_group | join(" and ") -%}
    {%- set counts = sums + uniques.keys() | list + (['skips'] if skip_group else []) -%}
    recipients as (
        select
            sign,
            {%- for name, expression in group.items() %}
            {{ expression }} as {{ name }},
            {%- endfor %}
            recipient_key,
            {{- sum_messages(message_sums()) | indent(8) }},
            count(*) filter (where is_transactional) as transactional_messages,
            min(sent_at) as first_sent_at,
            max(sent_at) as last_sent_at
        from {{ rows_before_and_after('messages', near, condition) }} as messages
        group by 1, recipient_key
            {%- for name in group %}, {{ loop.index + 1 }}{% endfor %}
    ),

    differences as (
        select
            {{ names }},
            {%- for name in sums %}
            sum((sign * {{ name }})::int) as {{ name }},
            {%- endfor %}
            {%- for name, measure in uniques.items() %}
            sum(case when {{ measure }} > 0 then sign else 0 end) as {{ name }},
            {%- endfor %}
            {{ "0 as skips," if skip_group }}
            min(first_sent_at) filter (where sign = 1) as first_after,
            max(last_sent_at) filter (where sign = 1) as last_after,
            min(first_sent_at) filter (where sign = -1) as first_before,
            max(last_sent_at) filter (where sign = -1) as last_before,
            null::timestamptz as first_present,
            null::timestamptz as last_present
        from recipients
        group by {{ names }}
        {%- if skip_group %}
        union all
        select
            {%- for name, expression in skip_group.items() %}
            {{ expression }} as {{ name }},
            {%- endfor %}
            {{ "0, " * (counts | length - 1) }}
            sum(sign) as skips,
            null, null, null, null, null, null
        from {{ signed_rows('events') }} as events
        where type = 'skip' and {{ skip_condition }}
        group by {% for name in group %}{{ loop.index }}{{ ", " if not loop.last }}{% endfor %}
        {%- endif %}
        /*+ union all
        select
            {{ names }}, {{ counts | join(", ") }}, null, null, null, null,
            {{ "first_sent_at, last_sent_at" if with_times else "null, null" }}
        from changed
        inner join {{ this }} as present using ({{ names }}) +*/
    ),

    summed as (
        select
            {{ names }},
            {%- for name in counts %}
            sum({{ name }})::bigint as {{ name }},
            {%- endfor %}
            min(first_after) as first_after,
            max(last_after) as last_after,
            min(first_before) as first_before,
            max(last_before) as last_before,
            min(first_present) as first_present,
            max(last_present) as last_present
        from differences
        group by {{ names }}
    ),

    totals as (
        select
            {{ names }},
            {{ counts | join(", ") }}
            {%- if with_times %},
            case
                when first_before is null or first_after <= first_before or first_present < first_before
                    then least(first_present, first_after)
                else (select min(of_group.sent_at) from (select {{ grouped }}, sent_at from {{ ref('messages') }} as messages where {{ condition }}) as of_group where {{ same_group }})
            end as first_sent_at,
            case
                when last_before is null or last_after >= last_before or last_present > last_before
                    then greatest(last_present, last_after)
                else (select max(of_group.sent_at) from (select {{ grouped }}, sent_at from {{ ref('messages') }} as messages where {{ condition }}) as of_group where {{ same_group }})
            end as last_sent_at
            {%- endif %}
        from summed
        where messages > 0{{ " or skips > 0" if skip_group }}
    )
{%- endmacro %}


{#- The groups of a mart that a run changes: those of changed messages, of changed skips, and those with a new name. -#}
{% macro changed_groups(group, condition='true', skip_group=none, skip_condition='true', named=[]) -%}
    select
        {%- for name, expression in group.items() %}
        {{ expression }} as {{ name }}{{ "," if not loop.last }}
        {%- endfor %}
    from {{ changes_of('messages') }} as messages
    where {{ condition }}
    {%- if skip_group %}
    union all
    select
        {%- for name, expression in skip_group.items() %}
        {{ expression }} as {{ name }}{{ "," if not loop.last }}
        {%- endfor %}
    from {{ changes_of('events') }} as events
    where type = 'skip' and {{ skip_condition }}
    {%- endif %}
    {%- for kind in named %}
    union all
    select {{ group.keys() | join(", ") }}
    from {{ this }} as present
    where {{ kind }}_id = any(array({{ renamed(kind) }}))
    {%- endfor %}
{%- endmacro %}


{#- The ids of campaigns, templates or journeys whose latest name has changed. -#}
{% macro renamed(kind) -%}
    select id
    from {{ changes_of('int_names') }} as names
    where kind like '{{ kind }}%'
    group by kind, id
    having min(value) <> max(value) or min(sign) = max(sign)
{%- endmacro %}


{#- The latest value of a name, as a column. -#}
{% macro latest_name(kind, id) -%}
    (select value from {{ ref('int_names') }} as names where names.kind = '{{ kind }}' and names.id = {{ id }})
{%- endmacro %}


{#- The measures of a mart, as columns of its last select. -#}
{% macro measures() -%}
    {{ (message_sums() + recipient_counts().keys() | list) | join(",\n    ") }}
{%- endmacro %}


{#-
    A quotient of the marts: six decimals, NULL without a denominator. The numerator has twelve decimals, because PostgreSQL
    computes only four of a quotient of 16 digits.
-#}
{% macro rate(numerator, denominator) -%}
    round(({{ numerator }}) * 1.000000000000 / nullif({{ denominator }}, 0), 6)
{%- endmacro %}


{#- A rate that only some channels have. -#}
{% macro rate_of(channels, numerator, denominator) -%}
    case when channel in ('{{ channels | join("', '") }}') then {{ rate(numerator, denominator) }} end
{%- endmacro %}


{#- The rates of a group of messages of one channel, as columns. -#}
{% macro message_rates() -%}
    {{ rate('delivered', 'sends') }} as delivery_rate,
    {{ rate_of(['email', 'sms', 'push'], 'bounces', 'sends') }} as bounce_rate,
    {{ rate_of(['email', 'push', 'in_app'], 'unique_opens', 'unique_delivered') }} as open_rate,
    {{ rate_of(['email', 'push', 'in_app'], 'unique_human_opens', 'unique_delivered') }} as human_open_rate,
    case channel
        when 'email' then {{ rate('unique_clicks', 'unique_delivered') }}
        when 'web_push' then {{ rate('unique_clicks', 'unique_delivered') }}
        when 'sms' then {{ rate('unique_clicks', 'delivered') }}
        when 'in_app' then {{ rate('unique_clicks', 'unique_opens') }}
    end as click_rate,
    case channel
        when 'email' then {{ rate('unique_human_clicks', 'unique_delivered') }}
        when 'web_push' then {{ rate('unique_human_clicks', 'unique_delivered') }}
        when 'sms' then {{ rate('unique_human_clicks', 'delivered') }}
        when 'in_app' then {{ rate('unique_human_clicks', 'unique_human_opens') }}
    end as human_click_rate,
    {{ rate_of(['email', 'in_app'], 'unique_clicks', 'unique_opens_or_clicks') }} as click_to_open_rate,
    {{ rate_of(['email', 'in_app'], 'unique_human_clicks', 'unique_human_opens_or_clicks') }} as human_click_to_open_rate,
    {{ rate_of(['email'], 'complaints', 'delivered') }} as complaint_rate,
    {{ rate('unique_unsubscribes', 'unique_delivered') }} as unsubscribe_rate,
    {{ rate('unique_recipient_unsubscribes', 'unique_delivered') }} as recipient_unsubscribe_rate
{%- endmacro %}


{#- The last step of the funnel, from 1 (sent) to 4 (clicked), that a row of `campaign_recipients` holds with all steps before it. -#}
{% macro funnel_step() -%}
    case
        when not sends > 0 then 0
        when not (channel = 'in_app' or delivered > 0) then 1
        when not human_opens + human_clicks > 0 then 2
        when not (human_clicks > 0 or (channel = 'push' and human_opens > 0)) then 3
        else 4
    end
{%- endmacro %}
