{#-
    Counts the rows of tables in three ways: in the tables, by the cursors' numbers, and by the ids in raw.events. A
    development run has read only the last events, so only they count.
-#}
{% macro compared_with_raw(condition, with_raw=true) %}
    {%- set cursors = cursors_relation() if execute %}
    {%- if not cursors %}
        select null as source, null as model, 0 as rows_in_table, 0 as rows_in_book, 0 as ids_in_raw where false
    {%- else %}
        select
            source,
            model,
            raw.count_rows({{ "source" if is_production() else string_literal(target_schema('')) ~ " || source" }}, model) as rows_in_table,
            table_rows as rows_in_book,
            {%- if not with_raw %}
            table_rows as ids_in_raw
            {%- elif is_production() %}
            raw.count_events(source, model, snapshot, distinct_ids => true) as ids_in_raw
            {%- else %}
            raw.count_new_ids(model, source, previous_snapshot, snapshot) as ids_in_raw
            {%- endif %}
        from {{ cursors }}
        where {{ condition }} and snapshot is not null
    {%- endif %}
{%- endmacro %}
