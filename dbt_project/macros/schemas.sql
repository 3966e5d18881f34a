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
