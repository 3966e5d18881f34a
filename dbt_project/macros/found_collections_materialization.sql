{#-
    Fills the tables of events without a model: one for each collection seen, by the macros that fill the other tables. The
    model's yml lists the columns with which these tables begin. All other columns are found in the events.
-#}
{% materialization found_collections, adapter='postgres' %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {%- do begin() -%}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {%- set totals = namespace(rows=0) -%}
    {%- set refusals = [] -%}
    {%- for source_name in registered_sources() -%}
        {%- for collection in collections_to_fill(source_name) -%}
            {%- if is_production() -%}
                {%- do note_try(source_name, collection.name, 'clock_timestamp()') -%}
                {%- do adapter.commit() -%}
                {%- do begin() -%}
            {%- endif -%}
            {%- set table = described_table(source_name, collection.name, found_description(collection.event)) -%}
            {%- set totals.rows = totals.rows + fill_table(table) -%}
            {%- do refusals.append(table.refusal) if table.refusal -%}
            {%- do note_try(source_name, collection.name, 'null') if is_production() -%}
            {%- do adapter.commit() -%}
            {%- do warn_of_obstacles(table) -%}
            {%- do begin() -%}
        {%- endfor -%}
        {%- do grant_found_tables(source_name) -%}
    {%- endfor -%}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {%- do adapter.commit() -%}

    {%- call noop_statement('main', 'INSERT ' ~ totals.rows, 'INSERT', totals.rows) -%}{%- endcall -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {%- do raise_refusals(refusals) -%}
    {{ return({'relations': []}) }}
{% endmaterialization %}


{#-
    Returns the collections without a model that need work: new events, an ordered rebuild, or a missing table. They come in
    the order of their first sight, but those that failed last time come last. A source gets at most LOADER_TABLES tables,
    and LOADER_NEW_TABLES in an hour. The events of the others are in tracks, and `loader status` names them.
-#}
{% macro collections_to_fill(source_name) %}
    {%- if not is_production() -%}
        {{ return(development_collections(source_name)) }}
    {%- endif -%}
    {%- set modelled = text_array(modelled_events()) -%}
    {%- set most = env_var('LOADER_TABLES', '200') | int -%}
    {%- set hourly = env_var('LOADER_NEW_TABLES', '50') | int -%}
    {%- do run_query("select raw.admit_collections('" ~ source_name ~ "', " ~ modelled ~ ", " ~ most ~ ", " ~ hourly ~ ")") -%}
    {%- set query -%}
        select coalesce(jsonb_agg(jsonb_build_object('name', collection, 'event', event) order by tried_at nulls first, number), '[]')::text as collections
        from (
            select seen.collection, seen.event, seen.number, seen.tried_at
            from raw.collections as seen
            where
                seen.source = '{{ source_name }}'
                and seen.admitted_at is not null
                and seen.collection <> all({{ modelled }})
            order by seen.number
            limit {{ most }}
        ) as allowed
        left join raw.cursors on cursors.source = '{{ source_name }}' and cursors.model = allowed.collection
        where
            {{ should_full_refresh() or is_widening() }}
            or cursors.snapshot is null
            or cursors.rebuild_ordered
            or to_regclass(format('%I.%I', cursors.source, cursors.model)) is null
            or raw.has_pending_columns(cursors.model, cursors.source)
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
    {%- set only = only_tables() -%}
    {%- set collections = [] -%}
    {%- for found in fromjson(run_query(query).rows[0][0]) if not only or source_name ~ "." ~ found.name in only -%}
        {%- do collections.append(found) -%}
    {%- endfor -%}
    {{ return(collections) }}
{% endmacro %}


{#-
    Records that a table is about to be tried, in a transaction of its own. A table that cannot be filled ends the run of all
    these tables, because a macro cannot catch an error. From the next run on, the record puts that table last.
-#}
{% macro note_try(source_name, name, tried_at) %}
    {%- do run_query("update raw.collections set tried_at = " ~ tried_at ~ " where source = '" ~ source_name ~ "' and collection = '" ~ name ~ "'") -%}
{% endmacro %}


{% macro found_description(event) -%}
    {{ return("Events named " ~ event[:200] ~ ", which have no model: the columns are those the events have.") }}
{%- endmacro %}


{#- Gives the rights of the model's config on all found tables of a source, with and without new events. -#}
{% macro grant_found_tables(source_name) %}
    {%- set query -%}
        select model from {{ cursors_relation() }}
        where
            source = {{ string_literal(source_name) }} and model <> all({{ text_array(modelled_events()) }})
            and exists (
                select from pg_class
                where oid = to_regclass(format('%I.%I', {{ string_literal(target_schema(source_name)) }}, model)) and pg_has_role(relowner, 'usage')
            )
        order by model
    {%- endset -%}
    {%- for name in (run_query(query).columns[0].values() if config.get('grants') else []) -%}
        {%- do give_grants(api.Relation.create(database=target.database, schema=target_schema(source_name), identifier=name)) -%}
    {%- endfor -%}
{% endmacro %}
