{#-
    Begins the record of an invocation, unless it reads no events (`--empty`). All its models read up to the snapshot taken
    here, so its tables agree with each other whatever lands meanwhile.
-#}
{% macro start_transform() %}
    {%- if execute and flags.WHICH in ('run', 'build') and fills_tables() -%}
        {%- if invocation_args_dict.sample -%}
            {%- do exceptions.raise_compiler_error(
                "--sample reads a part of the events, and the tables would count the rest as read. Use --empty to check the models without reading events."
                if is_production() else
                "--sample would leave found columns and cursors as they are without it. Set the variable development_days to read fewer days, such as --vars 'development_days: 1'."
            ) -%}
        {%- endif -%}
        {%- do check_rights_to_read() if not is_production() -%}
        {%- set found = run_query("select to_regproc('raw.end_transform') is not null") -%}
        {%- if not found.rows[0][0] -%}
            {%- do exceptions.raise_compiler_error(
                "The raw schema is not in database " ~ target.dbname ~ " on " ~ target.host ~ ", or is too old. Set DATABASE_URL to the URL of that database and run `loader migrate`, then run this command again."
            ) -%}
        {%- endif -%}
        {{ start_production() if is_production() else start_development() }}
    {%- endif -%}
{% endmacro %}


{% macro start_production() %}
    {{ transaction_settings() }}
    {#- Schemas are made here, because tables of a first run would wait for the table that makes the schema. Where the
        role may not create schemas, only the tables of that source are held. -#}
    {%- for source_name in registered_sources() if not schema_exists(source_name) and may_create_schemas() %}
    {{ create_schema_sql(source_name) }};
    {%- endfor %}

    {#- After a restore into another cluster the stored transaction ids mean nothing. -#}
    select raw.adopt_cluster();

    select raw.admit_readers(schema_name) from raw.sources;

    update raw.transforms
    set status = 'interrupted', finished_at = clock_timestamp(), error = 'The run ended without a report.'
    where
        status = 'running'
        and not exists (
            select from pg_stat_activity
            where datname = current_database() and application_name = 'dbt' and pid <> pg_backend_pid()
        );

    insert into raw.transforms (id, snapshot) values ('{{ invocation_id }}', pg_current_snapshot());
{% endmacro %}


{#-
    Returns the first statements of each transaction. They replace the defaults of the role and the database: a run has no
    time limit, and reads rows that others have committed meanwhile. PostgreSQL 16 has no transaction_timeout. With
    PostgreSQL's default of 4 MB, a run would sort its rows in several passes over the disk.
-#}
{% macro transaction_settings() -%}
    set transaction isolation level read committed, read write;
    set local statement_timeout = 0;
    set local lock_timeout = '{{ lock_wait() }}';
    set local idle_in_transaction_session_timeout = 0;
    set local standard_conforming_strings = on;
    select set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 67108864) / 1024 || 'kB', true);
    select set_config('transaction_timeout', '0', true) where current_setting('transaction_timeout', true) is not null;
{% endmacro %}


{#- Returns the time that a statement waits for a lock of another session. -#}
{% macro lock_wait() -%}
    {{- return((env_var('LOADER_LOCK_WAIT', '30') | float * 1000) | round | int ~ "ms") -}}
{%- endmacro %}


{#- Ends the record of an invocation. A failed model of a project that imports this one is not a failure of these tables. -#}
{% macro finish_transform(results) %}
    {%- if execute and flags.WHICH in ('run', 'build') and fills_tables() -%}
        {%- set failed = [] -%}
        {%- set filled = [] -%}
        {#- The record speaks of the tables alone, because they never wait for marts. -#}
        {%- for result in results if is_ours(result.node) and not is_mart(result.node) -%}
            {%- do failed.append(result) if result.status in ('error', 'runtime error', 'fail') -%}
            {%- do filled.append(result.node.name) if result.status == 'success' and is_served(result.node) and not env_var('LOADER_ONLY_TABLES', '') -%}
        {%- endfor -%}
        {{ finish_production(failed, filled) if is_production() else finish_development(failed) }}
    {%- endif -%}
{% endmacro %}


{% macro finish_production(failed, filled) %}
    {{ transaction_settings() }}
    {%- if flags.EMPTY %}
    delete from raw.transforms where id = '{{ invocation_id }}';
    {%- else %}
    select raw.end_transform(
        '{{ invocation_id }}',
        {{ string_literal(failed[0].node.name ~ ": " ~ failed[0].message) if failed else "null" }},
        {{ text_array(filled) }},
        {{ text_array(served_models()) }}
    );
    {%- endif -%}
{% endmacro %}


{#- Writes the errors of marts to their own books. -#}
{% macro finish_marts(results) %}
    {%- if execute and flags.WHICH in ('run', 'build') and is_production() and not flags.EMPTY -%}
        {%- for result in results if result.node.resource_type == 'model' and is_mart(result.node) and result.status in ('error', 'runtime error', 'skipped') %}
        update raw.marts
        set
            error = raw.without_values({{ string_literal(result.message or "A model before this one failed.") }}),
            failed_at = clock_timestamp()
        where mart = {{ string_literal(result.node.alias) }};
        {%- endfor -%}
    {%- endif -%}
{% endmacro %}


{#- Tells whether a node is a mart, or a test of one. -#}
{% macro is_mart(node) %}
    {{ return(node.fqn[:2] == ['iterable_warehouse', 'marts']) }}
{% endmacro %}


{#- Tells whether a node fills tables of the layout: a model of this project, or a team's model with its materialization. -#}
{% macro is_served(node) %}
    {{ return(node.resource_type == 'model' and node.config.materialized in ('collection', 'found_collections')) }}
{% endmacro %}


{% macro is_ours(node) %}
    {{ return(node.package_name == 'iterable_warehouse' or is_served(node)) }}
{% endmacro %}


{#- Returns the names of all models that fill tables of the layout. -#}
{% macro served_models() %}
    {%- set names = [] -%}
    {%- for node in graph.nodes.values() if is_served(node) -%}
        {%- do names.append(node.name) -%}
    {%- endfor -%}
    {{ return(names) }}
{% endmacro %}


{#- Tells whether this invocation fills any table. A project that imports this one runs its own models without these hooks. -#}
{% macro fills_tables() %}
    {%- for id in selected_resources if id in graph.nodes and is_served(graph.nodes[id]) -%}
        {{ return(true) }}
    {%- endfor -%}
    {{ return(false) }}
{% endmacro %}


{#- Returns the sources in a fixed order, so that two runs lock cursors in the same order. `before` is SQL to run first. -#}
{% macro registered_sources(before='') %}
    {%- set found = run_query(before ~ "select schema_name from raw.sources order by id").columns[0].values() | list -%}
    {%- if not found -%}
        {%- do exceptions.raise_compiler_error("There is no source yet. Run `loader source add Iterable`, then run this again.") -%}
    {%- endif -%}
    {{- return(found) -}}
{% endmacro %}


{#- Returns the tables that a run has filled, by source; none while dbt only parses. -#}
{% macro filled_tables() %}
    {%- set filled = {} -%}
    {%- if execute -%}
        {%- set cursors = cursors_relation() -%}
        {%- for row in (run_query("select source, model from " ~ cursors ~ " where snapshot is not null order by source, model").rows if cursors else []) -%}
            {%- do filled.setdefault(row['source'], []).append(row['model']) -%}
        {%- endfor -%}
    {%- endif -%}
    {{- return(filled) -}}
{% endmacro %}


{#-
    Returns the tables that `loader transform --select` names as `source.table`: those of a model, or those without a model.
    Empty where the run fills the tables of every source.
-#}
{% macro only_tables(model_name=none) %}
    {%- set modelled = modelled_events() -%}
    {%- set only = [] -%}
    {%- for name in env_var('LOADER_ONLY_TABLES', '').split() -%}
        {%- set table = name.split('.')[1] -%}
        {%- do only.append(name) if (table == model_name if model_name else table not in modelled) -%}
    {%- endfor -%}
    {{ return(only) }}
{% endmacro %}


{#- Returns the names of all models that are tables of the layout. -#}
{% macro collection_models() %}
    {{- return(
        graph.nodes.values() | selectattr('resource_type', 'equalto', 'model')
        | selectattr('config.materialized', 'equalto', 'collection') | map(attribute='alias') | sort
    ) -}}
{% endmacro %}


{#- Returns the events that found tables leave to models: those of the models' tables, and of models under another alias. -#}
{% macro modelled_events() %}
    {%- set names = graph.nodes.values() | selectattr('resource_type', 'equalto', 'model')
        | selectattr('config.materialized', 'equalto', 'collection') | map(attribute='name') | list -%}
    {{- return((collection_models() + names) | unique | list) -}}
{% endmacro %}


{#- Tells whether a collection and tracks have read the same events of the collection. -#}
{% macro have_read_the_same(source_name, collection) -%}
    {%- if is_production() -%}
        not exists (
            select from raw.events
            inner join raw.cursors as own on own.source = events.source and own.model = events.collection
            inner join raw.cursors as tracks on tracks.source = events.source and tracks.model = 'tracks'
            where
                events.source = '{{ source_name }}'
                and events.collection = '{{ collection }}'
                and events.load_xid >= least(pg_snapshot_xmin(own.snapshot), pg_snapshot_xmin(tracks.snapshot))
                and pg_visible_in_snapshot(events.load_xid, own.snapshot) <> pg_visible_in_snapshot(events.load_xid, tracks.snapshot)
        )
    {%- else -%}
        (
            select count(distinct transform_id) = 1 from {{ cursors_relation() }}
            where source = '{{ source_name }}' and model in ('{{ collection }}', 'tracks')
        )
    {%- endif -%}
{%- endmacro %}


{% macro text_array(names) -%}
    array[{% for name in names %}{{ string_literal(name) }}{{ ", " if not loop.last }}{% endfor %}]::text[]
{%- endmacro %}


{% macro string_literal(value) -%}
    '{{ value | string | replace("'", "''") }}'
{%- endmacro %}
