{#- The table has as many rows as its cursor's book says came of raw.events, in the schema of every source. -#}
{% test matches_raw(model) %}
    {%- set table_name = model.identifier -%}
    {%- for source_name in (registered_sources() if execute else []) %}
    select
        '{{ source_name }}' as source,
        counted.table_rows as rows_in_table,
        cursors.table_rows as rows_expected
    from (select count(*) as table_rows from {{ model.incorporate(path={'schema': source_name}) }}) as counted
    inner join raw.cursors on cursors.model = '{{ table_name }}' and cursors.source = '{{ source_name }}'
    where counted.table_rows <> cursors.table_rows
    {{ "union all" if not loop.last }}
    {%- else %}
    select 1 as nothing where false
    {%- endfor %}
{% endtest %}
