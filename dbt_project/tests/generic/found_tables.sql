{#-
    Tests the tables without a model, in the schema of every source. Each has as many rows as its cursor records and as
    raw.events has ids of its events. Each holds events of its own name only.
-#}
{% test found_tables(model) %}
    {%- set modelled = modelled_events() if execute else [] %}
    {%- for source_name, filled in filled_tables().items() %}
    {%- for name in filled if name not in modelled %}
    {%- set table = api.Relation.create(database=target.database, schema=target_schema(source_name), identifier=name) %}
    select '{{ table }}' as table_name, 'rows' as problem
    from (
        {{ compared_with_raw("source = '" ~ source_name ~ "' and model = '" ~ name ~ "'") }}
    ) as compared
    where rows_in_table <> rows_in_book or rows_in_table <> ids_in_raw
    union all
    select '{{ table }}', event from {{ table }} where event is distinct from '{{ name }}'
    union all
    {%- endfor %}
    {%- endfor %}
    select '' as table_name, '' as problem where false
{% endtest %}
