{#- Counts the rows of tables in three ways: in the tables, by the cursors' numbers, and by the ids in raw.events. -#}
{% macro compared_with_raw(condition, with_raw=true) %}
        select
            source,
            model,
            raw.count_rows(source, model) as rows_in_table,
            table_rows as rows_in_book,
            {{ "raw.count_events(source, model, snapshot, distinct_ids => true)" if with_raw else "table_rows" }} as ids_in_raw
        from raw.cursors
        where {{ condition }} and snapshot is not null
{%- endmacro %}
