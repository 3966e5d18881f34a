{#-
    tracks is the union of the collections' tables and of the events that have none: no row of a table is absent from it,
    and no row of it is absent from the table it names. In the schema of every source.

    A run of some models only (`--select`) may leave a table ahead of tracks or behind it; the two are compared again once
    both have read the same events.
-#}
{% test union_of_collections(model, collections) %}
    {%- if execute %}
    {%- set forgotten = collection_models() | reject('in', collections | map(attribute='identifier') | list + [model.identifier]) | list -%}
    {%- if forgotten -%}
        {%- do exceptions.raise_compiler_error("The test of " ~ model.identifier ~ " does not list " ~ forgotten | join(", ") ~ ".") -%}
    {%- endif -%}
    {%- endif %}
    {%- for source_name, filled in filled_tables().items() if model.identifier in filled %}
    {%- set tracks = model.incorporate(path={'schema': source_name}) %}
    {%- for collection in collections if collection.identifier in filled %}
    {%- set table = collection.incorporate(path={'schema': source_name}) %}
    select id, '{{ source_name }}.{{ collection.identifier }}' as table_name, 'not in tracks' as problem
    from {{ table }} as served
    where
        not exists (select from {{ tracks }} as tracks where tracks.id = served.id)
        and {{ have_read_the_same(source_name, collection.identifier) }}
    union all
    select id, '{{ source_name }}.{{ collection.identifier }}', 'not in its table'
    from {{ tracks }} as tracks
    where
        event = '{{ collection.identifier }}'
        and not exists (select from {{ table }} as served where served.id = tracks.id)
        and {{ have_read_the_same(source_name, collection.identifier) }}
    union all
    {%- endfor %}
    {%- endfor %}
    select '', '', '' where false
{% endtest %}
