{#-
    tracks is the union of the collections' tables and of the events that have none: no row of a table is absent from it,
    and no row of it is absent from the table it names. In the schema of every source.

    Tables without a model are compared as those with one; `collections` makes dbt test after all models have run.

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
    {%- for name in filled if name != model.identifier %}
    {%- set table = model.incorporate(path={'schema': source_name, 'identifier': name}) %}
    select id, '{{ source_name }}.{{ name }}' as table_name, 'not in tracks' as problem
    from {{ table }} as served
    where
        not exists (select from {{ tracks }} as tracks where tracks.id = served.id)
        and {{ have_read_the_same(source_name, name) }}
    union all
    select id, '{{ source_name }}.{{ name }}', 'not in its table'
    from {{ tracks }} as tracks
    where
        event = '{{ name }}'
        and not exists (select from {{ table }} as served where served.id = tracks.id)
        and {{ have_read_the_same(source_name, name) }}
    union all
    {%- endfor %}
    {%- endfor %}
    select '', '', '' where false
{% endtest %}
