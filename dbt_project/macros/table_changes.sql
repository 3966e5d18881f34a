{#-
    Changes tables that other sessions use. A change has a transaction of its own before the rows, because its lock would
    stop readers for as long as the rows take. The functions in the schema raw wait for no lock for long, and return the
    obstacle. The run then goes on without the change.
-#}

{#- Runs statements that change a table. Returns the obstacle, or the empty string. -#}
{% macro change_table(table, source_name, statements) %}
    {%- set in_the_way = run_query(
        "select raw.change_table('" ~ table.name ~ "', '" ~ source_name ~ "', " ~ string_literal(table.relation) ~ "::regclass, "
        ~ string_literal(statements | join("; ")) ~ ", " ~ is_forced() ~ ")"
    ).rows[0][0] or '' -%}
    {%- do table.obstacles.append("columns could not be added or described. In the way: " ~ in_the_way ~ ".") if in_the_way -%}
    {{ return(in_the_way) }}
{% endmacro %}


{#- Commits the change and locks the cursor again: another run may have read events meanwhile. -#}
{% macro commit_change(table, source_name, rebuild) %}
    {%- do adapter.commit() -%}
    {%- do begin() -%}
    {{ return(read_from(table.name, source_name, rebuild=rebuild)) }}
{% endmacro %}


{#- Takes the lock that rows need. Returns the obstacle, or the empty string. -#}
{% macro lock_for_rows(table, source_name) %}
    {%- set in_the_way = run_query(
        "select raw.lock_for_rows('" ~ table.name ~ "', '" ~ source_name ~ "', " ~ string_literal(table.relation) ~ "::regclass, " ~ is_forced() ~ ")"
    ).rows[0][0] or '' -%}
    {%- do table.update({'is_held': true}) if in_the_way -%}
    {%- do table.obstacles.append("no rows were added. In the way: " ~ in_the_way ~ ".") if in_the_way -%}
    {{ return(in_the_way) }}
{% endmacro %}


{#- Tells whether a person asked for this run. Such a run does not wait until a held table is due. -#}
{% macro is_forced() -%}
    {{ return(should_full_refresh() or is_widening()) }}
{%- endmacro %}


{#-
    Fills columns that were missing for a while: in the rows of events that came meanwhile, or in all rows if the yml
    declares the column. A rebuild has filled them already. Columns that are still missing then lack all values.
-#}
{% macro fill_late_columns(table, source_name, run, columns, rebuild) %}
    {%- set key = "model = '" ~ table.name ~ "' and source = '" ~ source_name ~ "' and fill_from is not null" -%}
    {%- if not rebuild -%}
        {%- for late in fromjson(run_query(
            "select coalesce(jsonb_agg(late), '[]')::text
            from (
                select fill_from::text as snapshot, jsonb_agg(column_name) as names
                from raw.columns
                where " ~ key ~ " and not is_missing
                group by fill_from::text
            ) as late"
        ).rows[0][0]) -%}
            {%- do refill_columns(table, source_name, run, columns | selectattr('name', 'in', late.names) | list, late.snapshot) -%}
        {%- endfor -%}
    {%- endif -%}
    {%- do run_query(
        "update raw.columns set fill_from = " ~ ("case when is_missing then '1:1:'::pg_snapshot end" if rebuild else "null")
        ~ " where " ~ key ~ ("" if rebuild else " and not is_missing")
    ) -%}
{% endmacro %}
