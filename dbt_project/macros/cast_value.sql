{#-
    Reads JSON and casts without ever raising an error, in PostgreSQL's own SQL. A bad value must cost one NULL, not the run.
-#}

{#- The limit of characters, of a number in a column of numbers and of a value in raw.mismatches. -#}
{% macro longest_number() -%}
    {{ return(1000) }}
{%- endmacro %}


{#- The value at the keys of a JSON value. The keys come from outside, so they become string literals only. -#}
{% macro json_value(value, keys) -%}
    {{ value }}{% for key in keys %} -> {{ string_literal(key) }}{% endfor %}
{%- endmacro %}


{#-
    The text of a JSON value, or words in place of a number with too many digits for a column. `1e131071` has eight characters
    in a call and 131,072 digits as text, and each use would make that text again.
-#}
{% macro short_text(value, text) -%}
    case
        when jsonb_typeof({{ value }}) = 'number' and not ({{ value }}) between '-1e{{ longest_number() }}' and '1e{{ longest_number() }}'
            then 'a number of more than {{ longest_number() }} digits'
        else {{ text }}
    end
{%- endmacro %}


{#- The text at the keys of a JSON value: a string without its quotes, an array or object as JSON. -#}
{% macro json_text(value, keys) -%}
    {{ value }}{% for key in keys %} {{ '->>' if loop.last else '->' }} {{ string_literal(key) }}{% endfor %}
{%- endmacro %}


{#-
    The text of a value at a list of keys. An object gives NULL, because its properties have columns of their own.
-#}
{% macro json_leaf(value, keys) -%}
    {%- set found = json_value(value, keys) -%}
    case when jsonb_typeof({{ found }}) <> 'object' then ({{ found }}) #>> '{}' end
{%- endmacro %}


{#-
    Casts a text to a column's type; NULL where the type cannot hold the text.

    A number has digits, and may have a sign, a point and an exponent, in at most 1,000 characters. PostgreSQL would also read
    `0x41C3` and `4_310_021`, which are identifiers in events.

    Numbers such as 12.0 are integers, as in a Segment warehouse; 12.5 is not cut to 12. A time needs date and time of day in
    ISO order: PostgreSQL would also read 'now' and 'today', which mean something else in every run.
-#}
{% macro cast_value(text, data_type) -%}
    {%- if data_type == 'text' -%}
        {{ text }}
    {%- elif data_type == 'bigint' -%}
        {%- set is_plain = is_plain_number(text) -%}
        case
            when pg_input_is_valid({{ text }}, 'bigint') and {{ is_plain }} then ({{ text }})::bigint
            when octet_length({{ text }}) <= {{ longest_number() }} and pg_input_is_valid({{ text }}, 'numeric') and {{ is_plain }}
                then case
                    when ({{ text }})::numeric between -9223372036854775808 and 9223372036854775807 and ({{ text }})::numeric % 1 = 0
                        then ({{ text }})::numeric::bigint
                end
        end
    {%- elif data_type == 'numeric' -%}
        case
            when octet_length({{ text }}) <= {{ longest_number() }} and pg_input_is_valid({{ text }}, 'numeric') and {{ is_plain_number(text) }} and ({{ text }})::numeric not in ('NaN', 'Infinity', '-Infinity')
                then ({{ text }})::numeric
        end
    {%- elif data_type == 'boolean' -%}
        case lower({{ text }}) when 'true' then true when 'false' then false end
    {%- elif data_type == 'timestamp with time zone' -%}
        case
            when ({{ text }} like '____-__-__T%' or {{ text }} like '____-__-__ %') and pg_input_is_valid({{ text }}, 'timestamptz')
                then ({{ text }})::timestamptz
        end
    {%- else -%}
        {#- A type that a person has given the column. -#}
        case
            when pg_input_is_valid({{ text }}, '{{ data_type }}'){{ " and " ~ is_plain_number(text) if is_number_type(data_type) }}
                then ({{ text }})::{{ data_type }}
        end
    {%- endif -%}
{%- endmacro %}


{#-
    Tells whether a text that PostgreSQL reads as a number has neither a prefix nor an underscore. Most numbers begin with a
    digit from 1 to 9 and have no prefix. They are not searched for letters, because the search takes longer than the cast.
-#}
{% macro is_plain_number(text) -%}
    (({{ text }}) collate "C" not like '%\_%' and (({{ text }}) collate "C" >= '1' or ({{ text }}) !~ '[xXoObB]'))
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
