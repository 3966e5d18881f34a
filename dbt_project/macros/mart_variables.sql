{#- Checks the variables of the marts before any mart is written. The error names the variable, the value and a remedy. -#}
{% macro check_mart_variables() %}
    {%- set zone = var('marts_time_zone') -%}
    {%- do refuse('marts_time_zone', zone, 'not the name of a time zone', 'Give an IANA name, such as Europe/Berlin') if zone is not string or not is_time_zone(zone) -%}
    {%- for name, entries in {
        'machine_proxies': 'of texts, such as [Apple]', 'transactional_channel_ids': 'of whole numbers, such as [1, 2]',
        'transactional_message_type_ids': 'of whole numbers, such as [1, 2]', 'conversion_events': 'as docs/marts.md shows',
        'attribution_models': 'as docs/marts.md shows',
    }.items() -%}
        {%- do refuse(name, var(name), 'not a list', 'Give a list ' ~ entries) if not is_list(var(name)) -%}
    {%- endfor -%}
    {%- for name in ['transactional_channel_ids', 'transactional_message_type_ids'] -%}
        {%- for id in var(name) -%}
            {%- do refuse(name, id, 'not an id', "Give Iterable's numbers, such as [1, 2]") if not modules.re.fullmatch('[0-9]{1,18}', id | string) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- do refuse('attribute_transactional', var('attribute_transactional'), 'neither true nor false', 'Give one of both') if var('attribute_transactional') is not boolean -%}
    {%- for name in ['conversion_lookback_hours', 'engagement_active_days', 'engagement_lapsing_days'] -%}
        {%- do refuse(name, var(name), 'not a positive number', 'Give a number, such as 72') if not is_positive(var(name)) -%}
    {%- endfor -%}
    {%- do refuse('default_currency', var('default_currency'), 'not a text', 'Give a currency in quotes, such as "EUR"') if var('default_currency') is not none and var('default_currency') is not string -%}
    {%- set day = var('as_of_date') -%}
    {%- do refuse('as_of_date', day, 'not a day', 'Give a day, such as 2026-03-04, or leave the variable out') if day is not none and not is_day(day | string) -%}

    {%- for event in var('conversion_events') -%}
        {%- do refuse('conversion_events', event, 'without a name, schema or table', 'Give all three') if not (event is mapping and event.name and event.schema and event.table) -%}
    {%- endfor -%}
    {%- do refuse_same_names('conversion_events') -%}

    {%- for one in var('attribution_models') -%}
        {%- do refuse('attribution_models', one, 'without a name', 'Give each model a name') if not (one is mapping and one.name) -%}
        {%- do refuse('attribution_models', one, 'without a known position', 'Give the position first, last or linear') if one.position not in ['first', 'last', 'linear'] -%}
        {%- do refuse('attribution_models', one, 'without a known touch', 'Give the touch click, open or send') if one.touch not in ['click', 'open', 'send'] -%}
        {%- do refuse('attribution_models', one, 'without a positive window', 'Give window_hours, such as 72') if not is_positive(one.window_hours) -%}
    {%- endfor -%}
    {%- do refuse_same_names('attribution_models') -%}
    {%- set names = var('attribution_models') | map(attribute='name') | map('string') | list -%}
    {%- do refuse('primary_attribution_model', var('primary_attribution_model'), 'not in attribution_models', 'Give one of ' ~ names | join(", ")) if var('primary_attribution_model') | string not in names -%}
{% endmacro %}


{% macro refuse(name, value, problem, remedy) %}
    {%- do exceptions.raise_compiler_error("The variable " ~ name ~ " has a value that is " ~ problem ~ ": " ~ tojson(value, value | string) ~ ". " ~ remedy ~ ". The marts stay as they are.") -%}
{% endmacro %}


{% macro refuse_same_names(name) %}
    {%- set names = [] -%}
    {%- for entry in var(name) -%}
        {%- do refuse(name, entry, 'the second of one name', 'Give each entry a name of its own') if entry.name | string in names -%}
        {%- do names.append(entry.name | string) -%}
    {%- endfor -%}
{% endmacro %}


{% macro is_list(value) %}
    {{ return(value is iterable and value is not string and value is not mapping) }}
{% endmacro %}


{#- Whether a value is a positive number, and fits into a span of time. -#}
{% macro is_positive(value) %}
    {{ return(value is number and value is not boolean and 0 < value < 1000000) }}
{% endmacro %}


{% macro is_time_zone(value) %}
    {{ return(run_query("select raw.is_time_zone(" ~ string_literal(value) ~ ")").rows[0][0]) }}
{% endmacro %}


{% macro is_day(value) %}
    {{ return(
        modules.re.fullmatch('[0-9]{4}-[0-9]{2}-[0-9]{2}', value) is not none
        and run_query("select pg_input_is_valid(" ~ string_literal(value) ~ ", 'date')").rows[0][0]
    ) }}
{% endmacro %}


{#- Returns a variable that is a list. Nothing is checked yet while dbt parses, and a wrong value must not stop the tables. -#}
{% macro list_variable(name) %}
    {{ return(var(name) if execute else []) }}
{% endmacro %}
