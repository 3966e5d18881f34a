{#-
    Creates the table of a model's yml where it is missing, and compares an existing table with the yml. Returns:
    - `created`, and the `new_columns` of a created table;
    - `missing` columns, and the `statements` that add them and correct comments;
    - the `types` of all columns by name, and the number of `attributes` that PostgreSQL counts, dropped columns included.
    A table without differences costs one query and no lock. A new table has no key: `add_primary_key` follows its first rows.
-#}
{% macro shape_table(table) %}
    {%- set relation = table.relation -%}
    {%- set described = described_columns(relation) -%}
    {%- set created = described is none -%}
    {%- set statements = [] -%}
    {%- set new_columns = [] -%}
    {%- set missing = [] -%}

    {%- if created -%}
        {%- if not schema_exists(relation.schema) -%}
            {%- do statements.append(create_schema_sql(relation.schema)) -%}
            {%- do statements.append("select raw.admit_readers(" ~ string_literal(relation.schema) ~ ")") -%}
        {%- endif -%}
        {%- do run_query(make_way_sql(relation)) -%}
        {%- do statements.append(create_table_sql(table)) -%}
        {%- set described = {'comment': '', 'columns': {}, 'attributes': table.declared | length, 'may_refuse_rows': false} -%}
        {%- for column in table.declared -%}
            {%- do described['columns'].update({column.name: {'comment': '', 'type': column.data_type}}) -%}
            {%- do new_columns.append(column.name) -%}
        {%- endfor -%}
    {%- endif -%}

    {%- for column in table.declared if column.name not in described['columns'] -%}
        {%- do statements.append("alter table " ~ relation ~ " add column " ~ adapter.quote(column.name) ~ " " ~ column.data_type) -%}
        {%- do described.update({'attributes': described['attributes'] + 1}) -%}
        {%- do missing.append(column.name) -%}
    {%- endfor -%}

    {%- if config.persist_relation_docs() and table.description != described['comment'] -%}
        {%- do statements.append("comment on table " ~ relation ~ " is " ~ string_literal(table.description)) -%}
    {%- endif -%}
    {%- if config.persist_column_docs() -%}
        {%- for column in table.declared if column.description != described['columns'].get(column.name, {}).get('comment', '') -%}
            {%- do statements.append("comment on column " ~ relation ~ "." ~ adapter.quote(column.name) ~ " is " ~ string_literal(column.description)) -%}
        {%- endfor -%}
    {%- endif -%}

    {%- if created -%}
        {%- do run_query(statements | join(";\n")) -%}
        {%- set statements = [] -%}
    {%- endif -%}
    {%- do table.update({'may_refuse_rows': described['may_refuse_rows']}) -%}
    {%- set types = {} -%}
    {%- for name, column in described['columns'].items() -%}{%- do types.update({name: column.type}) -%}{%- endfor -%}
    {{ return({'created': created, 'new_columns': new_columns, 'missing': missing, 'statements': statements, 'types': types, 'attributes': described['attributes']}) }}
{% endmacro %}


{#- The id is the primary key, as in a Segment warehouse on PostgreSQL. There is no other index. -#}
{% macro add_primary_key(relation) %}
    {%- do run_query("alter table " ~ relation ~ " add primary key (id)") -%}
{% endmacro %}


{#-
    The key of a table foo is called foo_pkey. An event may have that name too, and then the key gets another name. No table
    ends in an underscore, so the new name is free.
-#}
{% macro make_way_sql(relation) -%}
    do $make_way$ begin
        if (select relkind = 'i' from pg_class where oid = to_regclass({{ string_literal(relation) }})) then
            alter index {{ relation }} rename to {{ adapter.quote(relation.identifier[:62] ~ "_") }};
        end if;
    end $make_way$
{%- endmacro %}


{% macro create_table_sql(table) -%}
    create table {{ table.relation }} (
        {%- for column in table.declared %}
        {{ adapter.quote(column.name) }} {{ "varchar(1024) not null" if column.name == "id" else column.data_type }}{{ "," if not loop.last }}
        {%- endfor %}
    )
{%- endmacro %}


{#- Two sessions creating one schema at once would fail, `if not exists` or not. -#}
{% macro create_schema_sql(name) -%}
    select pg_advisory_xact_lock(hashtext('create schema'));
    create schema if not exists {{ adapter.quote(name) }}
{%- endmacro %}


{#- dbt calls this macro to make a schema before a run begins. An error here would end the run. -#}
{% macro postgres__create_schema(relation) %}
    {%- if may_create_schemas() -%}
        {%- call statement('create_schema') -%}
            {{ create_schema_sql(relation.schema) }}
        {%- endcall -%}
    {%- endif -%}
{% endmacro %}


{% macro may_create_schemas() %}
    {{ return(run_query("select has_database_privilege(current_database(), 'create') and current_setting('transaction_read_only') = 'off'").rows[0][0]) }}
{% endmacro %}


{% macro schema_exists(name) %}
    {{ return(run_query("select to_regnamespace(" ~ string_literal(adapter.quote(name)) ~ ") is not null").rows[0][0]) }}
{% endmacro %}


{#-
    Returns the catalog's description of a table: its comment, its columns with their comments, and whether an object that a
    run did not make may refuse rows. None when there is no such table.
-#}
{% macro described_columns(relation) %}
    {%- set query -%}
        select jsonb_build_object(
            'comment', coalesce(obj_description(to_regclass({{ string_literal(relation) }}), 'pg_class'), ''),
            'attributes', max(attnum),
            'may_refuse_rows', (
                select
                    relhasrules or relhastriggers or relrowsecurity
                    or (select count(*) > 1 from pg_index where indrelid = pg_class.oid)
                    or exists (select from pg_constraint where conrelid = pg_class.oid and contype not in ('p', 'n'))
                    or bool_or(
                        attgenerated <> '' or attidentity <> '' or (attnotnull and attname <> 'id')
                        or (select typtype = 'd' from pg_type where pg_type.oid = atttypid)
                    ) filter (where not attisdropped)
                from pg_class
                where pg_class.oid = min(attrelid::oid)
            ),
            'columns', jsonb_object_agg(
                attname,
                jsonb_build_object(
                    'type', format_type(atttypid, atttypmod), 'comment', coalesce(col_description(attrelid, attnum), '')
                )
            ) filter (where not attisdropped)
        )::text as described
        from pg_attribute
        where attrelid = (select oid from pg_class where oid = to_regclass({{ string_literal(relation) }}) and relkind <> 'i') and attnum > 0
        having count(*) > 0
    {%- endset -%}
    {%- set found = run_query(query) -%}
    {{ return(fromjson(found.rows[0][0]) if found.rows else none) }}
{% endmacro %}
