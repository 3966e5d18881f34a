{#-
    A development run: a run on a target that is not production. The run makes each table from the events of the last days,
    found columns included, and has no increments. The functions of the schema raw do all but the SQL of the select.
-#}

{#- Begins the record of a development run in the schema of its own, and prints the schemas of the run the first time. -#}
{% macro start_development() %}
    {%- do check_rights_to_read() -%}
    {%- set schemas = [] -%}
    {%- for source_name in registered_sources() -%}
        {%- do schemas.append(target_schema(source_name)) -%}
    {%- endfor -%}
    {%- if not cursors_relation() -%}
        {%- do log(
            "Target " ~ target.name ~ " is not production, so this run leaves the tables and cursors of production alone. It writes the events of the last "
            ~ development_days() ~ " days (variable development_days) to schema " ~ schemas | join(", ") ~ ", and its own cursors to schema " ~ ledger_schema()
            ~ ". The variable production_targets names the targets of production: " ~ production_targets() | join(", ")
            ~ ". If this run is production's, add " ~ target.name ~ " to the variable in dbt_project.yml.",
            info=true
        ) -%}
    {%- endif -%}
    {{ transaction_settings() }}
    select raw.open_development(
        {{ string_literal(ledger_schema()) }}, {{ text_array(schemas) }}, {{ string_literal(invocation_id) }},
        {{ string_literal(development_days()) }}
    );
{% endmacro %}


{% macro check_rights_to_read() %}
    {%- set query -%}
        select
            current_user,
            coalesce(has_schema_privilege(to_regnamespace('raw'), 'usage'), true)
            and not exists (
                select from pg_class
                where relnamespace = to_regnamespace('raw') and relkind in ('r', 'p', 'v') and not relispartition and not has_table_privilege(oid, 'select')
            )
    {%- endset -%}
    {%- set rights = run_query(query).rows[0] -%}
    {%- if not rights[1] -%}
        {%- set role = adapter.quote(rights[0]) -%}
        {%- do exceptions.raise_compiler_error(
            "Role " ~ rights[0] ~ " may not read schema raw. Let the owner of the schema run: grant usage on schema raw to " ~ role
            ~ "; grant select on all tables in schema raw to " ~ role
        ) -%}
    {%- endif -%}
{% endmacro %}


{#- Returns the number of days whose events a development run reads. -#}
{% macro development_days() -%}
    {{- return(var('development_days', 3)) -}}
{%- endmacro %}


{#- Makes one source's table from the events of the last days. Returns the number of its rows. -#}
{% macro make_development_table(table) %}
    {%- set name = [string_literal(ledger_schema()), string_literal(table.name), string_literal(table.source), string_literal(invocation_id)] -%}
    {%- set options = {
        'found_columns': table.own_sql is none, 'description': table.description,
        'relation_docs': config.persist_relation_docs(), 'column_docs': config.persist_column_docs(),
    } -%}
    {%- set plan = call_function(
        "raw.open_development_table", name[0], string_literal(table.relation.schema), name[1], name[2], name[3],
        json_literal(table.declared), json_literal(options), "current_setting('search_path')"
    ) -%}
    {%- if flags.EMPTY -%}
        {{ return(0) }}
    {%- endif -%}
    {%- set columns = planned_columns(plan) -%}
    {%- set selected = event_select(columns, table.name, table.every_event, first_of_id=true) if not table.own_sql -%}
    {%- call statement('main') -%}
        {{ insertion_sql(table, columns, selected, may_repeat=true) }}
    {%- endcall -%}
    {%- set inserted = load_result('main').response.rows_affected -%}
    {%- do run_query("select raw.close_development_table(" ~ name | join(", ") ~ ", " ~ inserted ~ ")") -%}
    {{ return(inserted) }}
{% endmacro %}


{% macro finish_development(failed) %}
    {{ transaction_settings() }}
    select raw.finish_development(
        {{ string_literal(ledger_schema()) }}, {{ string_literal(invocation_id) }},
        {{ "raw.without_values(" ~ string_literal(failed[0].node.name ~ ": " ~ failed[0].message) ~ ")" if failed else "null" }}
    );
{% endmacro %}


{#- Returns the collections without a model that get a table in a development run: the first ones seen, as in production. -#}
{% macro development_collections(source_name) %}
    {%- set query -%}
        select coalesce(jsonb_agg(jsonb_build_object('name', collection, 'event', event) order by number), '[]')::text
        from (
            select collection, event, number
            from raw.collections
            where source = {{ string_literal(source_name) }} and collection <> '' and collection <> all({{ text_array(modelled_events()) }})
            order by number
            limit {{ env_var('LOADER_TABLES', '200') | int }}
        ) as seen
    {%- endset -%}
    {{ return(fromjson(run_query(query).rows[0][0])) }}
{% endmacro %}
