{#-
    The events of messages and subscriptions in one form. The lists name the columns that the layout declares, because a
    mart reads no found columns.
-#}

{#-
    The collections that the marts read: `channel`, `type`, and the columns that only some collections have. `machine` holds
    the columns that tell a machine's open or click. Without `lacks`, a collection has all columns of `event_values`.
-#}
{% macro message_collections() %}
    {{ return([
        {'name': 'email_delivered', 'channel': 'email', 'type': 'send'},
        {'name': 'email_opened', 'channel': 'email', 'type': 'open', 'has': ['is_bot', 'proxy_source']},
        {'name': 'email_link_clicked', 'channel': 'email', 'type': 'click', 'has': ['is_bot'], 'links': ['url', 'link_url']},
        {'name': 'email_bounced', 'channel': 'email', 'type': 'bounce', 'has': ['recipient_state']},
        {'name': 'email_marked_as_spam', 'channel': 'email', 'type': 'complaint'},
        {'name': 'hosted_unsubscribe_click', 'channel': 'email', 'type': 'preference_visit'},
        {'name': 'email_send_skip', 'channel': 'email', 'type': 'skip', 'has': ['reason']},
        {'name': 'push_delivered', 'channel': 'push', 'type': 'send'},
        {'name': 'push_opened', 'channel': 'push', 'type': 'open'},
        {'name': 'push_bounced', 'channel': 'push', 'type': 'bounce'},
        {'name': 'mobile_app_uninstalled', 'channel': 'push', 'type': 'uninstall'},
        {'name': 'push_send_skip', 'channel': 'push', 'type': 'skip', 'has': ['reason']},
        {'name': 'sms_delivered', 'channel': 'sms', 'type': 'send'},
        {'name': 'sms_clicked', 'channel': 'sms', 'type': 'click', 'has': ['is_bot'], 'links': ['clicked_url']},
        {'name': 'sms_bounced', 'channel': 'sms', 'type': 'bounce'},
        {'name': 'sms_received', 'channel': 'sms', 'type': 'reply'},
        {'name': 'sms_send_skip', 'channel': 'sms', 'type': 'skip', 'has': ['reason']},
        {'name': 'in_app_sent', 'channel': 'in_app', 'type': 'send'},
        {'name': 'in_app_delivered', 'channel': 'in_app', 'type': 'receipt'},
        {'name': 'in_app_opened', 'channel': 'in_app', 'type': 'open'},
        {'name': 'in_app_clicked', 'channel': 'in_app', 'type': 'click', 'links': ['clicked_url']},
        {'name': 'in_app_send_skip', 'channel': 'in_app', 'type': 'skip', 'has': ['reason']},
        {'name': 'web_push_delivered', 'channel': 'web_push', 'type': 'send'},
        {'name': 'web_push_clicked', 'channel': 'web_push', 'type': 'click', 'links': ['web_push_click_action']},
        {'name': 'web_push_send_skip', 'channel': 'web_push', 'type': 'skip', 'has': ['reason']},
        {'name': 'unsubscribed', 'channel': none, 'type': 'unsubscribe', 'has': ['unsub_source']},
        {'name': 'subscribed', 'channel': none, 'type': 'subscribe', 'lacks': [
            'message_id', 'campaign_name', 'template_name', 'workflow_name', 'experiment_id', 'message_type_id',
        ]},
    ]) }}
{% endmacro %}


{#- The columns that the marts read of an event, with their types. -#}
{% macro event_values() %}
    {{ return({
        'created_at': 'text', 'timestamp': 'timestamptz', 'user_id': 'text', 'email': 'text', 'context_traits_email': 'text',
        'anonymous_id': 'text', 'message_id': 'text', 'campaign_id': 'bigint', 'campaign_name': 'text', 'template_id': 'bigint',
        'template_name': 'text', 'workflow_id': 'bigint', 'workflow_name': 'text', 'experiment_id': 'bigint',
        'channel_id': 'bigint', 'message_type_id': 'bigint',
    }) }}
{% endmacro %}


{#-
    The rows of a served table with some columns. A column that the table lacks is NULL: the inner select finds the name in
    `absent`. In an increment, only rows of some ids are read, by default those of the changed keys.
-#}
{% macro served_rows(collection, columns, ids=none) -%}
    select served.*
    from (
        select
            {%- for name, type in columns.items() %}
            null::{{ type }} as {{ adapter.quote(name) }}{{ "," if not loop.last }}
            {%- endfor %}
    ) as absent
    cross join lateral (
        select
            id::text as id,
            {%- for name, type in columns.items() %}
            {{ adapter.quote(name) }}::{{ type }} as {{ adapter.quote(name) }}{{ "," if not loop.last }}
            {%- endfor %}
        from {{ ref(collection) }}
        /*+ where id = any(array({{ ids or ("select id from changed where event = '" ~ collection ~ "'") }})) +*/
    ) as served
{%- endmacro %}


{#- The events of the collections of some types, or of all types, with the values as the collections have them. -#}
{% macro collected_events(types=none) -%}
    {%- set others = {'is_bot': 'boolean', 'proxy_source': 'text', 'recipient_state': 'text', 'unsub_source': 'text', 'reason': 'text'} -%}
    {%- for collection in message_collections() if not types or collection.type in types %}
    {%- set columns = {} -%}
    {%- for name, type in event_values().items() if name not in collection.lacks or [] -%}{%- do columns.update({name: type}) -%}{%- endfor -%}
    {%- for name in collection.has or [] -%}{%- do columns.update({name: others[name]}) -%}{%- endfor -%}
    {%- for name in collection.links or [] -%}{%- do columns.update({name: 'text'}) -%}{%- endfor %}
    select
        '{{ collection.name }}'::text as event,
        id,
        {{ "'" ~ collection.channel ~ "'" if collection.channel else "null" }}::text as channel,
        '{{ collection.type }}'::text as type,
        {%- for name, type in event_values().items() %}
        {{ adapter.quote(name) if name in columns else "null::" ~ type ~ " as " ~ name }},
        {%- endfor %}
        {%- for name, type in others.items() %}
        {{ name if name in columns else "null::" ~ type ~ " as " ~ name }},
        {%- endfor %}
        {%- set links = [] -%}
        {%- for name in collection.links or [] -%}{%- do links.append(text_value(name)) -%}{%- endfor %}
        {{ "coalesce(" ~ links | join(", ") ~ ")" if links else "null::text" }} as link_text
    from (
    {{ served_rows(collection.name, columns) }}
    ) as {{ collection.name }}
    {{- " union all" if not loop.last }}
    {%- endfor %}
{%- endmacro %}


{#- A text without spaces around it; NULL if nothing is left. -#}
{% macro text_value(text) -%}
    nullif(btrim({{ text }}), '')
{%- endmacro %}


{#- The time of an event: Iterable's time, if it can be read, else the sender's. -#}
{% macro occurred_at(created_at, timestamp) -%}
    coalesce(raw.to_time(btrim({{ created_at }})), {{ timestamp }})
{%- endmacro %}


{#- The day of a time in the zone of the marts. A time at the ends of PostgreSQL's range has no other zone. -#}
{% macro local_day(moment) -%}
    case
        when {{ moment }} between '4000-01-01 BC' and '200000-01-01'
            then ({{ moment }} at time zone '{{ var("marts_time_zone") | replace("'", "''") }}')::date
        else ({{ moment }} at time zone 'UTC')::date
    end
{%- endmacro %}


{#- An address in lower case; NULL if it is empty or Iterable's placeholder. -#}
{% macro address(text) -%}
    case when lower(btrim({{ text }})) not like '%@placeholder.email' then nullif(lower(btrim({{ text }})), '') end
{%- endmacro %}


{#- The address of a person: the first that an event has. -#}
{% macro person_email(email, traits_email, anonymous_id) -%}
    coalesce(
        {{ address(email) }},
        {{ address(traits_email) }},
        case when {{ anonymous_id }} like '%@%' then {{ address(anonymous_id) }} end
    )
{%- endmacro %}


{#- The key of a person. -#}
{% macro person_key(user_id, email, otherwise) -%}
    coalesce('u:' || {{ short_text(user_id) }}, 'e:' || {{ short_text(email) }}, {{ otherwise }})
{%- endmacro %}


{#- A text that fits into the entry of an index, which has at most 2,700 bytes. -#}
{% macro short_text(text) -%}
    case when octet_length({{ text }}) > 1000 then left({{ text }}, 200) || ':' || md5({{ text }}) else {{ text }} end
{%- endmacro %}


{#- Whole seconds from one time to another, and 0 for a negative number; NULL without one of both. -#}
{% macro seconds_between(earlier, later) -%}
    case
        when {{ earlier }} is not null and {{ later }} is not null
            then greatest(floor(extract(epoch from {{ later }}) - extract(epoch from {{ earlier }})), 0)::bigint
    end
{%- endmacro %}


{#- Whole seconds since 1970. -#}
{% macro unix_seconds(moment) -%}
    floor(extract(epoch from {{ moment }}))::bigint
{%- endmacro %}


{#- The address of a link without its parameters. -#}
{% macro without_parameters(url) -%}
    nullif(substring({{ url }} from '^[^?#]*'), '')
{%- endmacro %}


{#- The scheme and host of an address; empty if the address has no scheme. -#}
{% macro scheme_and_host(address) -%}
    coalesce(substring({{ address }} from '^[A-Za-z][A-Za-z0-9+.-]*://[^/]*'), '')
{%- endmacro %}


{#- An open or click of a machine. Nothing is guessed: `is_bot` says so, or the open came through a proxy that opens all mails. -#}
{% macro is_machine(is_bot, proxy_source) -%}
    {%- set proxies = [] -%}
    {%- for proxy in list_variable('machine_proxies') -%}{%- do proxies.append(string_literal(proxy | string | trim | lower)) -%}{%- endfor -%}
    (coalesce({{ is_bot }}, false) or coalesce(lower(btrim({{ proxy_source }})) in ({{ proxies | join(", ") or "null" }}), false))
{%- endmacro %}


{% macro bounce_class(recipient_state) -%}
    case
        when lower(btrim({{ recipient_state }})) = 'hardbounce' then 'hard'
        when lower(btrim({{ recipient_state }})) like 'mailblock%' then 'block'
        when lower(btrim({{ recipient_state }})) like 'softbounce%' or lower(btrim({{ recipient_state }})) = 'dnsfailure' then 'soft'
        else 'other'
    end
{%- endmacro %}


{% macro unsubscribe_class(unsub_source) -%}
    case
        when lower(btrim({{ unsub_source }})) in ('emaillink', 'sms') then 'recipient'
        when lower(btrim({{ unsub_source }})) = 'hardbounce' then 'bounce'
        when lower(btrim({{ unsub_source }})) = 'complaint' then 'complaint'
        else 'system'
    end
{%- endmacro %}


{#- The key of a message from one of its sends: the message id, else campaign, second and person. -#}
{% macro send_key(message_id, channel, campaign_id, occurred_at, user_key) -%}
    coalesce(
        'm:' || {{ short_text(message_id) }},
        'f:' || {{ channel }} || ':' || {{ campaign_id }} || ':' || {{ unix_seconds(occurred_at) }} || ':' || {{ user_key }}
    )
{%- endmacro %}


{#- Whether a column holds one of the ids of a variable. -#}
{% macro is_one_of(column, ids) -%}
    {{ column }} in ({{ ids | map('int') | join(", ") or "null" }})
{%- endmacro %}


{#- The names that an event gives to its campaign, template and workflow. -#}
{% macro names_of_event() -%}
    values
    ('campaign_name', events.campaign_id, events.campaign_name),
    ('campaign_workflow_id', events.campaign_id, events.workflow_id::text),
    ('campaign_workflow_name', events.campaign_id, events.workflow_name),
    ('template_name', events.template_id, events.template_name),
    ('workflow_name', events.workflow_id, events.workflow_name)
{%- endmacro %}
