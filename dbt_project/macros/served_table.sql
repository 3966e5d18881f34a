{#-
    The table as the model's yml describes it: created when missing, grown by columns it lacks, comments kept current.
    Returns whether it was created, and the names of the columns that were added. A table that is as it should be costs one
    query and no lock. A new table has no key yet: `add_primary_key` follows when its first rows are in.
-#}
{% macro shape_table(relation) %}
    {%- set described = described_columns(relation) -%}
    {%- set created = described is none -%}
    {%- set statements = [] -%}
    {%- set new_columns = [] -%}

    {%- if created -%}
        {%- do statements.append(create_schema_sql(relation.schema)) if not schema_exists(relation.schema) -%}
        {%- do statements.append(create_table_sql(relation)) -%}
        {%- set described = {'comment': '', 'columns': {}} -%}
        {%- for column in model.columns.values() -%}
            {%- do described['columns'].update({column.name: {'comment': ''}}) -%}
            {%- do new_columns.append(column.name) -%}
        {%- endfor -%}
    {%- endif -%}

    {%- for column in model.columns.values() if column.name not in described['columns'] -%}
        {%- do statements.append("alter table " ~ relation ~ " add column " ~ adapter.quote(column.name) ~ " " ~ column.data_type) -%}
        {%- do described['columns'].update({column.name: {'comment': ''}}) -%}
        {%- do new_columns.append(column.name) -%}
    {%- endfor -%}

    {%- if config.persist_relation_docs() and model.description != described['comment'] -%}
        {%- do statements.append("comment on table " ~ relation ~ " is " ~ string_literal(model.description)) -%}
    {%- endif -%}
    {%- if config.persist_column_docs() -%}
        {%- for column in model.columns.values() if column.description != described['columns'][column.name]['comment'] -%}
            {%- do statements.append("comment on column " ~ relation ~ "." ~ adapter.quote(column.name) ~ " is " ~ string_literal(column.description)) -%}
        {%- endfor -%}
    {%- endif -%}

    {%- if statements -%}
        {%- do run_query(statements | join(";\n")) -%}
    {%- endif -%}
    {{ return({'created': created, 'new_columns': new_columns}) }}
{% endmacro %}


{#- The id is the primary key, as in a Segment warehouse on PostgreSQL; there is no other index. -#}
{% macro add_primary_key(relation) %}
    {%- do run_query("alter table " ~ relation ~ " add primary key (id)") -%}
{% endmacro %}


{% macro create_table_sql(relation) -%}
    create table {{ relation }} (
        {%- for column in model.columns.values() %}
        {{ adapter.quote(column.name) }} {{ "varchar(1024) not null" if column.name == "id" else column.data_type }}{{ "," if not loop.last }}
        {%- endfor %}
    )
{%- endmacro %}


{#- Two sessions creating one schema at once would fail, `if not exists` or not. -#}
{% macro create_schema_sql(name) -%}
    select pg_advisory_xact_lock(hashtext('create schema'));
    create schema if not exists {{ adapter.quote(name) }}
{%- endmacro %}


{#- dbt's own way to a schema, called before anything else of a run. -#}
{% macro postgres__create_schema(relation) %}
    {%- call statement('create_schema') -%}
        {{ create_schema_sql(relation.schema) }}
    {%- endcall -%}
{% endmacro %}


{% macro schema_exists(name) %}
    {{ return(run_query("select to_regnamespace(" ~ string_literal(adapter.quote(name)) ~ ") is not null").rows[0][0]) }}
{% endmacro %}


{#- What the catalog says of a table: its comment, and its columns with theirs; none when there is no such table. -#}
{% macro described_columns(relation) %}
    {%- set found = run_query(
        "select attname, coalesce(col_description(attrelid, attnum), ''), coalesce(obj_description(attrelid, 'pg_class'), '')"
        ~ " from pg_attribute where attrelid = to_regclass(" ~ string_literal(relation | string) ~ ") and attnum > 0 and not attisdropped"
    ) -%}
    {%- if not found.rows -%}{{ return(none) }}{%- endif -%}
    {%- set columns = {} -%}
    {%- for row in found.rows -%}
        {%- do columns.update({row[0]: {'comment': row[1]}}) -%}
    {%- endfor -%}
    {{ return({'comment': found.rows[0][2], 'columns': columns}) }}
{% endmacro %}
