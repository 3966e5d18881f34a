{#-
    The tables of events that have no model: one for each collection seen, made and filled by the macros that make and fill
    the others. The model's yml lists the columns they all begin with; everything else is found in the events.
-#}
{% materialization found_collections, adapter='postgres' %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {%- do begin() -%}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {%- set totals = namespace(rows=0) -%}
    {%- for source_name in registered_sources() -%}
        {%- for collection in collections_to_fill(source_name) -%}
            {%- set table = described_table(source_name, collection.name, found_description(collection.event)) -%}
            {%- set totals.rows = totals.rows + fill_table(table, source_name) -%}
            {%- do adapter.commit() -%}
            {%- do begin() -%}
        {%- endfor -%}
    {%- endfor -%}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {%- do adapter.commit() -%}

    {%- call noop_statement('main', 'INSERT ' ~ totals.rows, 'INSERT', totals.rows) -%}{%- endcall -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': []}) }}
{% endmaterialization %}


{#-
    The collections without a model that have something to do: new events, or a rebuild ahead. In the order they were seen,
    and no more than LOADER_TABLES for a source: the events of the others are in tracks, and `loader status` tells.
-#}
{% macro collections_to_fill(source_name) %}
    {%- set query -%}
        select coalesce(jsonb_agg(jsonb_build_object('name', collection, 'event', event) order by number), '[]')::text as collections
        from (
            select seen.collection, seen.event, seen.number
            from raw.collections as seen
            where
                seen.source = '{{ source_name }}'
                and seen.collection <> ''
                and seen.collection <> all(array[{% for name in collection_models() %}'{{ name }}'{{ ", " if not loop.last }}{% endfor %}]::text[])
            order by seen.number
            limit {{ env_var('LOADER_TABLES', '200') | int }}
        ) as allowed
        left join raw.cursors on cursors.source = '{{ source_name }}' and cursors.model = allowed.collection
        where
            {{ should_full_refresh() or is_widening() }}
            or cursors.snapshot is null
            or exists (
                select from raw.events
                where
                    events.source = '{{ source_name }}'
                    and events.collection = allowed.collection
                    and (
                        events.load_xid >= pg_snapshot_xmax(cursors.snapshot)
                        or events.load_xid = any(array(select pg_snapshot_xip(cursors.snapshot)))
                    )
            )
    {%- endset -%}
    {{ return(fromjson(run_query(query).rows[0][0])) }}
{% endmacro %}


{% macro found_description(event) -%}
    {{ return("Events named " ~ event[:200] ~ ", which have no model: the columns are those the events have.") }}
{%- endmacro %}
