{#-
    Fills one mart per source in place, in schema `<source>_marts`. docs/marts.md explains the mechanism.

    A model's SQL computes all rows. In an increment, the same SQL computes the rows of the changed keys: the macros in
    mart_changes.sql put the text of both forms into the compiled SQL. Each run of a mart is one transaction, which also
    writes the changed rows to the log of the mart, before and after. The marts that read this mart read the log.
-#}
{% materialization mart, adapter='postgres' %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {%- set totals = namespace(rows=0) -%}
    {%- set relations = [] -%}
    {%- do begin() -%}
    {%- for source_name in mart_sources() -%}
        {%- do begin() if not loop.first -%}
        {%- set relation = mart_relation(source_name, model.alias) -%}
        {%- set totals.rows = totals.rows + fill_mart(source_name, relation) -%}
        {%- do relations.append(relation) -%}
        {%- do adapter.commit() -%}
    {%- endfor -%}
    {%- do store_raw_result('main', 'INSERT ' ~ totals.rows, 'INSERT', totals.rows) -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': relations}) }}
{% endmaterialization %}


{#- Keeps a view per source. `create or replace` keeps the grants and the views that depend on the view. -#}
{% materialization mart_view, adapter='postgres' %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {%- set relations = [] -%}
    {%- do begin() -%}
    {%- for source_name in mart_sources() -%}
        {%- do begin() if not loop.first -%}
        {%- set relation = mart_relation(source_name, model.alias, 'view') -%}
        {%- set full_sql = mart_sql(sql, source_name, is_increment=false) -%}
        {%- set plan = open_mart(source_name, relation, [], full_sql) if is_production() else {'state': 'full'} -%}
        {%- if plan.state == 'full' -%}
            {%- do run_query("create or replace view " ~ relation ~ " as " ~ full_sql) -%}
            {%- do persist_docs(relation, model) -%}
            {%- do run_query("select raw.close_mart(" ~ json_literal(plan) ~ ", 0)") if is_production() -%}
        {%- endif -%}
        {%- do relations.append(relation) -%}
        {%- do adapter.commit() -%}
    {%- endfor -%}
    {%- do store_raw_result('main', 'CREATE VIEW', 'CREATE VIEW', 0) -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': relations}) }}
{% endmaterialization %}


{#- Logs the ids of the events that the collections have got, for all marts that read collections. -#}
{% materialization mart_arrivals, adapter='postgres' %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {%- set totals = namespace(rows=0) -%}
    {%- do begin() -%}
    {%- for source_name in mart_sources() -%}
        {%- do begin() if not loop.first -%}
        {%- do check_mart_variables() if loop.first -%}
        {%- set log = mart_log(mart_relation(source_name, model.alias)) -%}
        {%- set schema = mart_schema(source_name) -%}
        {%- do run_query(create_schema_sql(schema)) if not schema_exists(schema) -%}
        {%- set is_new = false -%}
        {%- if is_production() -%}
            {%- do run_query("select raw.admit_readers(" ~ string_literal(source_name) ~ ")") -%}
            {%- set is_new = create_log(log) -%}
        {%- endif -%}
        {%- if is_production() and not flags.EMPTY -%}
            {%- set tables = own_conversion_tables() if model.alias == 'int_conversion_arrivals' else message_tables(source_name) -%}
            {%- set arrived = run_query(
                "select raw.log_arrivals(" ~ string_literal(source_name) ~ ", " ~ string_literal(model.alias) ~ ", "
                ~ json_literal(tables) ~ ", " ~ string_literal(log) ~ ", " ~ (should_full_refresh() or is_new) ~ ")"
            ).rows[0][0] -%}
            {%- set totals.rows = totals.rows + arrived -%}
        {%- endif -%}
        {%- do adapter.commit() -%}
    {%- endfor -%}
    {%- do store_raw_result('main', 'INSERT ' ~ totals.rows, 'INSERT', totals.rows) -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': []}) }}
{% endmaterialization %}


{#- Brings one mart of one source up to its inputs, and returns the number of changed rows. -#}
{% macro fill_mart(source_name, relation) %}
    {%- set full_sql = mart_sql(sql, source_name, is_increment=false) -%}
    {%- set log = mart_log(relation) if mart_readers() and is_production() else none -%}
    {%- set is_created = not relation_exists(relation) -%}
    {%- do run_query("create table " ~ relation ~ " (" ~ mart_columns(types=true) ~ ")") if is_created -%}
    {%- do create_log(log) if log -%}
    {%- if flags.EMPTY -%}
        {%- do finish_new_mart(relation) if is_created -%}
        {{ return(0) }}
    {%- endif -%}
    {%- if not is_production() -%}
        {#- A development run makes all rows, from the tables of its own target, and keeps no books. -#}
        {%- do run_query("select raw.set_mart_session(false)") -%}
        {{ return(replace_rows(relation, full_sql, is_created)) }}
    {%- endif -%}
    {%- set plan = open_mart(source_name, relation, mart_inputs(), full_sql, is_created, [relation] + ([log] if log else [])) -%}
    {%- if plan.state == 'unchanged' -%}
        {{ return(0) }}
    {%- endif -%}
    {%- if plan.state == 'full' -%}
        {%- do run_query("delete from " ~ log) if log -%}
        {%- do add_missing_columns(relation, log) if not is_created -%}
        {%- set changed = replace_rows(relation, full_sql, is_created) -%}
    {%- else -%}
        {%- do run_query("select raw.trim_log(" ~ string_literal(source_name) ~ ", " ~ string_literal(model.alias) ~ ", " ~ string_literal(log) ~ ")") if log -%}
        {%- set changed = change_rows(relation, log, source_name, plan) -%}
    {%- endif -%}
    {%- do run_query("select raw.close_mart(" ~ json_literal(plan) ~ ", " ~ changed ~ ")") -%}
    {%- do log_note(relation, plan.note) if plan.note -%}
    {{ return(changed) }}
{% endmacro %}


{% macro log_note(relation, note) %}
    {%- do log(relation.schema ~ "." ~ relation.identifier ~ " was made again: " ~ note, info=true) -%}
{% endmacro %}


{#-
    Plans the run of a mart. See `raw.open_mart`. The numbers of the `tables` are a part of the fingerprint, so a table that
    was dropped and restored is made again.
-#}
{% macro open_mart(source_name, relation, inputs, full_sql, is_created=false, tables=[]) %}
    {%- set variables = {} -%}
    {%- for name in config.get('meta', {}).get('variables', []) -%}
        {#- YAML reads a day as a date, which JSON does not know. -#}
        {%- do variables.update({name: var(name) | string if name == 'as_of_date' and var(name) else var(name)}) -%}
    {%- endfor -%}
    {%- set names = [] -%}
    {%- for name in inputs -%}{%- do names.append(string_literal(name)) -%}{%- endfor -%}
    {%- set fingerprint = [string_literal(local_md5(full_sql | replace('"' ~ relation.database ~ '".', '')))] -%}
    {%- for table in tables -%}{%- do fingerprint.append("to_regclass(" ~ string_literal(table) ~ ")::oid") -%}{%- endfor -%}
    {%- set plan = call_function(
        "raw.open_mart", string_literal(source_name), string_literal(model.alias), string_literal(invocation_id), "array[" ~ names | join(", ") ~ "]::text[]",
        "concat_ws(' ', " ~ fingerprint | join(", ") ~ ")", json_literal(variables),
        (should_full_refresh() or is_created) ~ " or to_regclass(" ~ string_literal(relation) ~ ") is null",
        model.alias == 'int_conversions' and has_foreign_conversions()
    ) -%}
    {%- if plan.state == 'missing' -%}
        {%- do exceptions.raise_compiler_error("Mart " ~ plan.note ~ " has no rows yet, and " ~ model.alias ~ " reads it. Run all marts: `--select tag:marts`.") -%}
    {%- endif -%}
    {{ return(plan) }}
{% endmacro %}


{#- Makes all rows again, in one transaction with the deletion of the old rows. A new table gets its keys after the rows. -#}
{% macro replace_rows(relation, full_sql, is_created) %}
    {%- do run_query("delete from " ~ relation) if not is_created -%}
    {%- call statement('rows') -%}
        insert into {{ relation }} ({{ mart_columns() }})
        select {{ mart_columns() }}
        from (
        {{ full_sql }}
        ) as computed
    {%- endcall -%}
    {%- set rows = load_result('rows').response.rows_affected -%}
    {%- do finish_new_mart(relation) if is_created -%}
    {%- do run_query("analyze " ~ relation) -%}
    {%- do persist_docs(relation, model) -%}
    {{ return(rows) }}
{% endmacro %}


{#-
    Computes the rows of the changed keys, and writes the rows that differ from the stored rows. The log gets the same rows:
    with sign -1 as they were, with sign 1 as they are. Returns the number of rows in the log.
-#}
{% macro change_rows(relation, log, source_name, plan) %}
    {%- set key = config.get('unique_key') -%}
    {%- set others = [] -%}
    {%- for column in model.columns if column not in key -%}
        {%- do others.append(adapter.quote(column) ~ " = excluded." ~ adapter.quote(column)) -%}
    {%- endfor -%}
    {%- call statement('changes', fetch_result=True) -%}
        with changed as materialized (
            select distinct {{ key | join(", ") }}
            from (
            {{ changed_keys_sql(sql, source_name) }}
            ) as touched
        ),

        fresh as materialized (
            select {{ mart_columns(types=true, as_casts=true) }}
            from (
            {{ mart_sql(sql, source_name, is_increment=true) }}
            ) as computed
        ),

        stored as materialized (
            select stored.*
            from changed
            cross join lateral (
                select {{ mart_columns() }}
                from {{ relation }} as present
                where {{ same_key("present", "changed") }}
                offset 0
            ) as stored
        ),

        {#- The planner has no statistics of these rows. PostgreSQL has no nested loop for a full join. #}
        compared as materialized (
            select stored, fresh
            from stored
            full join fresh on {{ same_key("fresh", "stored") }}
            where row(fresh.*) is distinct from row(stored.*)
        ),

        changes as materialized (
            select -1 as sign, fresh is not distinct from null as is_gone, (stored).*
            from compared
            where stored is distinct from null
            union all
            select 1 as sign, false as is_gone, (fresh).*
            from compared
            where fresh is distinct from null
        ),
        {%- if log %}

        logged as (
            insert into {{ log }} (version, sign, {{ mart_columns() }})
            select {{ plan.version }}, sign, {{ mart_columns() }}
            from changes
        ),
        {%- endif %}

        removed as (
            delete from {{ relation }} as present
            using changes
            where
                changes.is_gone
                and {{ same_key("present", "changes") }}
        ),

        written as (
            insert into {{ relation }} ({{ mart_columns() }})
            select {{ mart_columns() }}
            from changes
            where sign = 1
            on conflict ({{ key | join(", ") }}) do {{ "update set " ~ others | join(", ") if others else "nothing" }}
        )

        select count(*) as changed_rows
        from changes
    {%- endcall -%}
    {{ return(load_result('changes').table.rows[0][0] | int) }}
{% endmacro %}


{% macro same_key(one, other) %}
    {%- for column in config.get('unique_key') -%}
        {{ one }}.{{ column }} = {{ other }}.{{ column }}{{ " and " if not loop.last }}
    {%- endfor -%}
{% endmacro %}


{#- The columns of the mart's yml, in their order. -#}
{% macro mart_columns(types=false, as_casts=false) %}
    {%- for column in model.columns.values() -%}
        {{ adapter.quote(column.name) }}
        {{- "::" if as_casts else (" " if types) }}{{ column.data_type if types }}{{ " as " ~ adapter.quote(column.name) if as_casts }}
        {{- ", " if not loop.last }}
    {%- endfor -%}
{% endmacro %}


{#- Creates the log of changes of a mart, as the marts that read it see it. Returns whether the log was missing. -#}
{% macro create_log(log) %}
    {%- set columns = "event text not null, id text not null" if config.get('materialized') == 'mart_arrivals' else "sign smallint not null, " ~ mart_columns(types=true) -%}
    {%- set is_missing = not relation_exists(log) -%}
    {%- if is_missing -%}
        {%- do run_query("create table " ~ log ~ " (version bigint not null, " ~ columns ~ ")") -%}
        {%- do run_query("comment on table " ~ log ~ " is 'The last changed rows of a mart, for the marts that read it.'") -%}
    {%- endif -%}
    {{ return(is_missing) }}
{% endmacro %}


{#- A new version of the project may add columns to a mart. The table stays, so that views and grants survive. -#}
{% macro add_missing_columns(relation, log) %}
    {%- for table in [relation, log] if table and relation_exists(table) -%}
        {%- set present = adapter.get_columns_in_relation(table) | map(attribute='name') | list -%}
        {%- for column in model.columns.values() if column.name not in present -%}
            {%- do run_query("alter table " ~ table ~ " add column " ~ adapter.quote(column.name) ~ " " ~ column.data_type) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- do add_indexes(relation) -%}
{% endmacro %}


{% macro finish_new_mart(relation) %}
    {%- do run_query("alter table " ~ relation ~ " add primary key (" ~ config.get('unique_key') | join(", ") ~ ")") -%}
    {%- do add_indexes(relation) -%}
{% endmacro %}


{% macro add_indexes(relation) %}
    {%- for name, definition in config.get('meta', {}).get('indexes', {}).items() -%}
        {%- do run_query("create index if not exists " ~ model.alias ~ "_" ~ name ~ " on " ~ relation ~ " " ~ definition) -%}
    {%- endfor -%}
{% endmacro %}


{% macro relation_exists(relation) %}
    {{ return(run_query("select to_regclass(" ~ string_literal(relation) ~ ") is not null").rows[0][0]) }}
{% endmacro %}


{#- The collections of messages, as `raw.log_arrivals` takes them. -#}
{% macro message_tables(source_name) %}
    {%- set tables = [] -%}
    {%- for collection in message_collections() -%}
        {%- do tables.append({'name': collection.name, 'source': source_name, 'model': collection.name}) -%}
    {%- endfor -%}
    {{ return(tables) }}
{% endmacro %}


{#- Returns the schema of the marts of a source, for the target of the run. -#}
{% macro mart_schema(source_name) %}
    {{ return(target_schema(source_name ~ "_marts")) }}
{% endmacro %}


{% macro mart_relation(source_name, name, type='table') %}
    {{ return(api.Relation.create(database=target.database, schema=mart_schema(source_name), identifier=name, type=type)) }}
{% endmacro %}


{% macro mart_log(relation) %}
    {{ return(relation.incorporate(path={"identifier": log_name(relation.identifier)})) }}
{% endmacro %}


{% macro log_name(mart) %}
    {{ return("int_changes_" ~ modules.re.sub("^int_", "", mart)) }}
{% endmacro %}


{#- Returns the marts that the model reads. -#}
{% macro mart_inputs() %}
    {%- set inputs = [] -%}
    {%- for unique_id in model.depends_on.nodes -%}
        {%- set node = graph.nodes.get(unique_id) -%}
        {%- do inputs.append(node.alias) if node and node.config.materialized in ('mart', 'mart_arrivals') -%}
    {%- endfor -%}
    {{ return(inputs | sort) }}
{% endmacro %}


{#- Returns the marts that read the model by its log. Views read the table. -#}
{% macro mart_readers() %}
    {%- set readers = [] -%}
    {%- for node in graph.nodes.values() if node.config.materialized == 'mart' and model.unique_id in node.depends_on.nodes -%}
        {%- do readers.append(node.alias) -%}
    {%- endfor -%}
    {{ return(readers) }}
{% endmacro %}


{#-
    Returns the sources with marts: the source whose schema is LOADER_SCHEMA, and each source with an event of a message.
    A source whose marts would have the schema of another source has none, and `loader status` says so.
-#}
{% macro mart_sources() %}
    {%- set collections = [] -%}
    {%- for collection in message_collections() -%}{%- do collections.append(string_literal(collection.name)) -%}{%- endfor -%}
    {%- set query -%}
        select schema_name
        from raw.sources
        where
            (
                schema_name = {{ string_literal(env_var('LOADER_SCHEMA', 'iterable')) }}
                or exists (
                    select from raw.cursors
                    where
                        cursors.source = sources.schema_name
                        and cursors.model in ({{ collections | join(", ") }})
                        and cursors.table_rows > 0
                )
            )
            and not exists (
                select from raw.mart_clashes
                where mart_clashes.source = sources.schema_name
            )
        order by id
    {%- endset -%}
    {{ return(run_query(query).columns[0].values() | list) }}
{% endmacro %}
