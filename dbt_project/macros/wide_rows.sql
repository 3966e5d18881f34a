{#-
    Wide rows: rows that PostgreSQL could not store. A table may have 1,600 columns, but a row must fit on a page of 8 kB. A
    value takes up to 18 bytes of the page even when it is stored elsewhere. An event that fills too many columns gets the
    first ones, as many as always fit. The others are NULL in its row and whole in raw.events, and raw.mismatches lists the
    event. Narrower tables never come here.
-#}

{#- The bytes of a page for values, after headers and the bitmap of NULLs. -#}
{% macro row_bytes() -%}
    {{ return(7900) }}
{%- endmacro %}


{#- The most bytes that a value takes in a row, padding included. -#}
{% macro value_bytes(data_type) -%}
    {{ return({'boolean': 1, 'bigint': 16, 'timestamp with time zone': 16}.get(data_type, 18)) }}
{%- endmacro %}


{#- Returns the columns that may be left empty in a row that is too wide: those after the columns that always fit. -#}
{% macro columns_at_risk(columns) %}
    {%- set used = namespace(bytes=0) -%}
    {%- set at_risk = [] -%}
    {%- for column in columns -%}
        {%- set used.bytes = used.bytes + value_bytes(column.data_type) -%}
        {%- do at_risk.append(column.name) if used.bytes > row_bytes() -%}
    {%- endfor -%}
    {{ return(at_risk) }}
{% endmacro %}


{#- An SQL condition: the values of a row of `selected` fit on a page. A function takes at most a hundred arguments. -#}
{% macro row_fits(columns) -%}
    {%- set sums = [] -%}
    {%- for data_type, alike in columns | groupby('data_type') -%}
        {%- for some in alike | batch(90) -%}
            {%- set names = [] -%}
            {%- for column in some -%}{%- do names.append("selected." ~ adapter.quote(column.name)) -%}{%- endfor -%}
            {%- do sums.append(value_bytes(data_type) ~ " * num_nonnulls(" ~ names | join(", ") ~ ")") -%}
        {%- endfor -%}
    {%- endfor -%}
    {{ sums | join(" + ") }} <= {{ row_bytes() }}
{%- endmacro %}


{#- The select of a table. In a wide table, the columns at risk stay empty where a row would not fit. -#}
{% macro fitting_select(columns, selected) -%}
    {%- set at_risk = columns_at_risk(columns) -%}
    {%- if not at_risk -%}
        {{ return(selected) }}
    {%- endif -%}
    select
        {%- for column in columns %}
        {%- if column.name in at_risk %}
        case when fitting.fits then selected.{{ adapter.quote(column.name) }} end{{ "," if not loop.last }}
        {%- else %}
        selected.{{ adapter.quote(column.name) }}{{ "," if not loop.last }}
        {%- endif %}
        {%- endfor %}
    from (
        {{ selected }}
        offset 0
    ) as selected
    cross join lateral (select {{ row_fits(columns) }} as fits offset 0) as fitting
{%- endmacro %}


{#- Lists the events of this run whose rows were too wide, once each. -#}
{% macro record_wide_rows(table, columns, repeated) %}
    {%- set at_risk = columns_at_risk(columns) -%}
    {%- if not at_risk -%}
        {{ return(none) }}
    {%- endif -%}
    {%- do write_rows(
        table,
        "insert into raw.mismatches (model, source, event_id, column_name, value)
        select '" ~ table.name ~ "', '" ~ table.source ~ "', selected.id, '*', 'too wide for a row: columns from " ~ at_risk[0] ~ " on are NULL'
        from (" ~ event_select(columns, table.name, table.every_event, repeated) ~ " offset 0) as selected
        where
            not (" ~ row_fits(columns) ~ ")
            and not exists (select from " ~ table.relation ~ " as served where served.id = selected.id)
        on conflict (model, source, event_id, column_name) do nothing"
    ) -%}
{% endmacro %}
