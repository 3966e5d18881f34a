{#-
    Engine-specific: reading JSON and casting without ever raising. One bad value must cost one NULL, not the run.
-#}

{#- How many characters a number may have in a column of numbers, and how many of a value raw.mismatches keeps. -#}
{% macro longest_number() -%}
    {{ return(1000) }}
{%- endmacro %}


{#- The value at the keys of a JSON value. The keys come from outside and become string literals, nothing else. -#}
{% macro json_value(value, keys) -%}
    {{ value }}{% for key in keys %} -> {{ string_literal(key) }}{% endfor %}
{%- endmacro %}


{#-
    A text of a JSON value, but words in place of a number whose digits no column of numbers takes. `1e131071` has eight
    characters in a call and 131,072 digits as text, and the text is made anew for each look at it.
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
    The text of a value at a list of keys, NULL where there is an object: its own properties have columns of their own.
-#}
{% macro json_leaf(value, keys) -%}
    {%- set found = json_value(value, keys) -%}
    case when jsonb_typeof({{ found }}) <> 'object' then ({{ found }}) #>> '{}' end
{%- endmacro %}


{#-
    A text as a column's type, NULL when the type cannot hold it.

    A number has digits, and perhaps a sign, a point and an exponent, 1,000 characters in all at most. PostgreSQL would also read `0x41C3` and `4_310_021`,
    which are identifiers wherever events come from.

    Whole-valued numbers such as 12.0 are integers, as in a Segment warehouse; 12.5 is not cut to 12. A time needs date
    and clock in ISO order: PostgreSQL would also read 'now' and 'today', which mean something else in every run.
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
        {#- A type somebody has given the column by hand. -#}
        case
            when pg_input_is_valid({{ text }}, '{{ data_type }}'){{ " and " ~ is_plain_number(text) if is_number_type(data_type) }}
                then ({{ text }})::{{ data_type }}
        end
    {%- endif -%}
{%- endmacro %}


{#-
    Whether a text that PostgreSQL reads as a number has neither a prefix nor an underscore. Most numbers begin with a
    digit from 1 to 9 and so have no prefix: they are not searched for letters, which would take longer than the cast.
-#}
{% macro is_plain_number(text) -%}
    (({{ text }}) collate "C" not like '%\_%' and (({{ text }}) collate "C" >= '1' or ({{ text }}) !~ '[xXoObB]'))
{%- endmacro %}


{#- Whether a type that somebody has given a column by hand holds numbers. -#}
{% macro is_number_type(data_type) -%}
    {{ return(data_type.lower().split('(')[0].strip() in [
        'smallint', 'integer', 'int', 'int2', 'int4', 'int8', 'decimal', 'numeric', 'real', 'double precision', 'float',
        'float4', 'float8',
    ]) }}
{%- endmacro %}


{#-
    Whether a value that its column holds has digits there that are not kept: of a second, PostgreSQL keeps six; a type that
    somebody has given the column by hand may round numbers. Empty for types that keep all digits.
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
