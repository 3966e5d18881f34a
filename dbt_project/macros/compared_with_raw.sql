{#-
    Counts the rows of tables in three ways: in the tables, by the cursors' numbers, and by the ids in raw.events. A
    development run has read only the last events, so only they count.
-#}
{% macro compared_with_raw(condition, with_raw=true) %}
    {%- set cursors = cursors_relation() if execute %}
    {%- set ids_in_raw = "raw.count_events(source, model, snapshot, distinct_ids => true)" if is_production() else "raw.count_new_ids(model, source, previous_snapshot, snapshot)" %}
        select
            source,
            model,
            raw.count_rows({{ "source" if is_production() else string_literal(target_schema('')) ~ " || source" }}, model) as rows_in_table,
            table_rows as rows_in_book,
            {{ ids_in_raw if with_raw else "table_rows" }} as ids_in_raw
        from {{ cursors or "raw.cursors" }}
        where {{ condition if cursors else "false" }} and snapshot is not null
{%- endmacro %}
