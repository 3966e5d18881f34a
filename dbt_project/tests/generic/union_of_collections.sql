{#-
    Tests that tracks is the union of the collections' tables and of the events without a table, in the schema of every
    source. Every row of a table is in tracks, and every row of tracks is in the table that it names.

    An id counts once a table. Where events of two names share an id, both tables have a row, and tracks has the event that
    landed first. Such rows are listed as a warning (`shared id`). Any other difference is an error.

    Tables without a model are compared in the same way. `collections` makes dbt test after all models have run.

    A run of some models (`--select`) may leave a table ahead of tracks or behind it. The two are compared again when both
    have read the same events.
-#}
{% test union_of_collections(model, collections) %}
    {{ config(warn_if='<> 0', error_if="<> 0 and bool_or(problem <> 'shared id')") }}
    {%- if execute %}
    {%- set forgotten = collection_models() | reject('in', collections | map(attribute='identifier') | list + [model.identifier]) | list -%}
    {%- if forgotten -%}
        {%- do exceptions.raise_compiler_error("The test of " ~ model.identifier ~ " does not list " ~ forgotten | join(", ") ~ ".") -%}
    {%- endif -%}
    {%- endif %}
    {%- for source_name, filled in filled_tables().items() if model.identifier in filled %}
    {%- set tracks = model.incorporate(path={'schema': target_schema(source_name)}) %}
    {%- for name in filled if name != model.identifier %}
    {%- set table = model.incorporate(path={'schema': target_schema(source_name), 'identifier': name}) %}
    select
        served.id,
        '{{ source_name }}.{{ name }}' as table_name,
        case when tracks.id is null then 'not in tracks' else 'shared id' end as problem
    from {{ table }} as served
    left join {{ tracks }} as tracks on tracks.id = served.id
    where
        (tracks.id is null or tracks.event is distinct from '{{ name }}')
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
    select '' as id, '' as table_name, '' as problem where false
{% endtest %}
