{#- The table has as many rows as its cursor's book says came of raw.events, in the schema of every source. -#}
{% test matches_raw(model) %}
    select
        source,
        raw.count_rows(source, model) as rows_in_table,
        table_rows as rows_expected
    from raw.cursors
    where model = '{{ model.identifier }}' and snapshot is not null and raw.count_rows(source, model) <> table_rows
{% endtest %}
