{#- Checks the variables of the marts before any mart is written. The error names the variable. -#}
{% macro check_mart_variables() %}
    {%- do refuse('marts_time_zone', 'is not the IANA name of a time zone') if not is_time_zone(var('marts_time_zone')) -%}
    {%- for name in ['machine_proxies', 'transactional_channel_ids', 'transactional_message_type_ids', 'conversion_events', 'attribution_models'] -%}
        {%- do refuse(name, 'is not a list') if var(name) is string or var(name) is mapping or var(name) is not iterable -%}
    {%- endfor -%}
    {%- for name in ['transactional_channel_ids', 'transactional_message_type_ids'] -%}
        {%- for id in var(name) -%}
            {%- do refuse(name, 'has an entry that is no whole number') if not modules.re.fullmatch('[0-9]{1,18}', id | string) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- do refuse('attribute_transactional', 'is neither true nor false') if var('attribute_transactional') is not boolean -%}
    {%- for name in ['conversion_lookback_hours', 'engagement_active_days', 'engagement_lapsing_days'] -%}
        {%- do refuse(name, 'is no positive number') if not is_positive(var(name)) -%}
    {%- endfor -%}
    {%- do refuse('as_of_date', 'is no day, as in 2026-03-04') if var('as_of_date') and not is_day(var('as_of_date')) -%}

    {%- for event in var('conversion_events') -%}
        {%- do refuse('conversion_events', 'has an entry without name, schema or table') if not (event is mapping and event.name and event.schema and event.table) -%}
    {%- endfor -%}
    {%- set names = var('conversion_events') | map(attribute='name') | map('string') | list -%}
    {%- do refuse('conversion_events', 'has two conversions of one name') if names | unique | list | length < names | length -%}

    {%- for one in var('attribution_models') -%}
        {%- do refuse('attribution_models', 'has an entry without a name') if not (one is mapping and one.name) -%}
        {%- do refuse('attribution_models', 'has a position that is not first, last or linear') if one.position not in ['first', 'last', 'linear'] -%}
        {%- do refuse('attribution_models', 'has a touch that is not click, open or send') if one.touch not in ['click', 'open', 'send'] -%}
        {%- do refuse('attribution_models', 'has a window_hours that is no positive number') if not is_positive(one.window_hours) -%}
    {%- endfor -%}
    {%- set names = var('attribution_models') | map(attribute='name') | map('string') | list -%}
    {%- do refuse('attribution_models', 'has two models of one name') if names | unique | list | length < names | length -%}
    {%- do refuse('primary_attribution_model', 'is not in attribution_models') if var('primary_attribution_model') | string not in names -%}
{% endmacro %}


{% macro refuse(name, problem) %}
    {%- do exceptions.raise_compiler_error("The variable " ~ name ~ " " ~ problem ~ ": " ~ var(name) ~ ". The marts stay as they are.") -%}
{% endmacro %}


{% macro is_positive(value) %}
    {{ return(value is number and value is not boolean and value > 0) }}
{% endmacro %}


{% macro is_time_zone(value) %}
    {{ return(run_query("select raw.is_time_zone(" ~ string_literal(value) ~ ")").rows[0][0]) }}
{% endmacro %}


{% macro is_day(value) %}
    {{ return(run_query("select pg_input_is_valid(" ~ string_literal(value) ~ ", 'date')").rows[0][0]) }}
{% endmacro %}
