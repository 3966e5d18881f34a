{#-
    Tests the number of rows, in the schema of every source. It equals the number that the cursor records, and the number of
    ids in raw.events up to the cursor. A model with SQL of its own (`found_columns: false`) may leave events out, so only
    the cursor's number counts.
-#}
{% test matches_raw(model) %}
    {%- set node = (graph.nodes.values() if execute else []) | selectattr('alias', 'equalto', model.identifier) | selectattr('resource_type', 'equalto', 'model') | first %}
    select * from (
        {{ compared_with_raw("model = '" ~ model.identifier ~ "'", with_raw=node and node.config.meta.found_columns is not false) }}
    ) as compared
    where rows_in_table <> rows_in_book or rows_in_table <> ids_in_raw
{% endtest %}
