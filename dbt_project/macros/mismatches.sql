{#-
    Returns an SQL condition that is always true. Its side effect lists the mismatches of the new row, and the times of the
    call that cannot be read. An empty string is no value. The condition is part of the insert, so a run reads and unpacks
    every event once. `tracks` lists only events without a documented collection: any other event has its mismatches at its
    own table. An event whose id is in the table makes no row and no mismatch. A rebuild need not look for such a row,
    because the table is empty.
-#}
{% macro note_mismatches(table, columns, rebuild) %}
    {%- set values = unread_times(columns) -%}
    {%- for column in columns if column.reading -%}
        {%- do values.append({'name': column.name, 'text': column.text, 'is_lost': loses_value(column)}) -%}
    {%- endfor -%}
    {%- if not values -%}{{ return('') }}{%- endif -%}
    case
        when
            {%- for value in values %}
            {{ "or " if not loop.first }}{{ value.is_lost }}
            {%- endfor %}
            then {{ "events.table_id <> 'raw.events_other'::regclass or " if table.every_event }}raw.note_mismatches(
                '{{ table.name }}',
                '{{ table.source }}',
                {{ "null" if rebuild else string_literal(table.relation) }}::regclass,
                events.message_id,
                {{ text_array(values | map(attribute='name')) }},
                array[
                    {%- for value in values %}
                    case when {{ value.is_lost }} then {{ kept_value(value.text) }} end{{ "," if not loop.last }}
                    {%- endfor %}
                ]
            )
        else true
    end
{%- endmacro %}


{#- The part of a value that raw.mismatches keeps. raw.events has the whole value. -#}
{% macro kept_value(value) -%}
    case when length({{ value }}) > {{ longest_number() }} then left({{ value }}, {{ longest_number() }}) || '…' else {{ value }} end
{%- endmacro %}
