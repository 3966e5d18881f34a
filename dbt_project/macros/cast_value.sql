{#-
    Reads JSON and casts without ever raising an error, by functions of the schema raw. A bad value must cost one NULL, not the
    run.
-#}

{#- The limit of characters, of a number in a column of numbers and of a value in raw.mismatches. -#}
{% macro longest_number() -%}
    {{ return(1000) }}
{%- endmacro %}


{#-
    The value at the keys of a JSON value, or with `as_text` its text: a string without its quotes, an array or object as
    JSON. The keys come from outside, so they become string literals only.
-#}
{% macro json_value(value, keys, as_text=false) -%}
    {%- set literals = keys | map('replace', "'", "''") | list -%}
    {{ value }}{% for key in literals %} {{ '->>' if as_text and loop.last else '->' }} '{{ key }}'{% endfor %}
{%- endmacro %}


{#-
    The text of a value at a list of keys. An object gives NULL, because its properties have columns of their own.
-#}
{% macro json_leaf(value, keys) -%}
    {%- set found = json_value(value, keys) -%}
    case when jsonb_typeof({{ found }}) <> 'object' then ({{ found }}) #>> '{}' end
{%- endmacro %}


{#- Casts a text to a column's type; NULL where the type cannot hold the text. A person may have chosen another type. -#}
{% macro cast_value(text, data_type) -%}
    {%- set functions = {'bigint': 'to_bigint', 'numeric': 'to_numeric', 'boolean': 'to_boolean', 'timestamp with time zone': 'to_time'} -%}
    {%- if data_type in functions -%}
        raw.{{ functions[data_type] }}({{ text }})
    {%- elif data_type == 'text' -%}
        {{ text }}
    {%- else -%}
        case
            when pg_input_is_valid({{ text }}, '{{ data_type }}'){{ " and raw.is_plain_number(" ~ text ~ ")" if is_number_type(data_type) }}
                then ({{ text }})::{{ data_type }}
        end
    {%- endif -%}
{%- endmacro %}


{#- Tells whether a type that a person has given a column holds numbers. -#}
{% macro is_number_type(data_type) -%}
    {{ return(data_type.lower().split('(')[0].strip() in [
        'smallint', 'integer', 'int', 'int2', 'int4', 'int8', 'decimal', 'numeric', 'real', 'double precision', 'float',
        'float4', 'float8',
    ]) }}
{%- endmacro %}


{#-
    An SQL condition: the column holds the value without some of its digits. PostgreSQL keeps six digits of a second, and a
    type that a person has given the column may round numbers. Empty for types that keep all digits.
-#}
{% macro loses_digits(text, data_type) -%}
    {%- if data_type == 'timestamp with time zone' -%}
        octet_length({{ text }}) > 26 and {{ text }} ~ '[.,][0-9]{6}[0-9]*[1-9]'
    {%- elif data_type not in ('bigint', 'numeric') and is_number_type(data_type) -%}
        case
            when octet_length({{ text }}) <= {{ longest_number() }} and pg_input_is_valid({{ text }}, 'numeric') and pg_input_is_valid({{ text }}, '{{ data_type }}')
                then ({{ text }})::{{ data_type }}::text::numeric <> ({{ text }})::numeric
        end
    {%- endif -%}
{%- endmacro %}
