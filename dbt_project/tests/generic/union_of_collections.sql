{#-
    tracks is the union of the collections' tables and of the events that have none: no row of a table is absent from it,
    and no row of it is absent from the table it names. In the schema of every source.
-#}
{% test union_of_collections(model) %}
    {%- if execute %}
    {%- set collections = graph.nodes.values() | selectattr('resource_type', 'equalto', 'model') | selectattr('config.materialized', 'equalto', 'collection') | map(attribute='name') | reject('equalto', model.identifier) | sort -%}
    {%- for source_name in registered_sources() %}
    {%- set tracks = model.incorporate(path={'schema': source_name}) %}
    {%- for collection in collections %}
    {%- set table = model.incorporate(path={'schema': source_name, 'identifier': collection}) %}
    select id, '{{ source_name }}.{{ collection }}' as table_name, 'not in tracks' as problem
    from {{ table }} as served
    where not exists (select from {{ tracks }} as tracks where tracks.id = served.id)
    union all
    select id, '{{ source_name }}.{{ collection }}', 'not in its table'
    from {{ tracks }} as tracks
    where event = '{{ collection }}' and not exists (select from {{ table }} as served where served.id = tracks.id)
    {{ "union all" if not loop.last }}
    {%- endfor %}
    {{ "union all" if not loop.last }}
    {%- endfor %}
    {%- else %}
    select 1 as nothing where false
    {%- endif %}
{% endtest %}
