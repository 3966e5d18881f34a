{#-
    Production and development. Production is the target that the variable `production_targets` names. A run on any other
    target is a development run: it writes the tables of the latest events to schemas of its own, and only reads the schema
    raw. So a developer or a CI can never touch the tables, cursors and reports of production.
-#}

{#- Returns the names of the targets that are production: the variable is a list, or names with commas or spaces between. -#}
{% macro production_targets() -%}
    {%- set names = var('production_targets', ['warehouse', 'prod', 'production']) -%}
    {{- return(names.replace(',', ' ').split() if names is string else names) -}}
{%- endmacro %}


{% macro is_production() -%}
    {{- return(target.name in production_targets()) -}}
{%- endmacro %}


{#- Returns the schema of a target for a name of production: the name itself, or the name after the target's schema. -#}
{% macro target_schema(name) -%}
    {{- return(name if is_production() else target.schema ~ '_' ~ name) -}}
{%- endmacro %}


{#- Returns the schema of the cursors and reports of this target. -#}
{% macro ledger_schema() -%}
    {{- return(target_schema('raw')) -}}
{%- endmacro %}


{#- Returns the table of the cursors of this target; none where no run has made the table yet. -#}
{% macro cursors_relation() -%}
    {%- set cursors = adapter.quote(ledger_schema()) ~ '.cursors' -%}
    {{- return(cursors if run_query("select to_regclass(" ~ string_literal(cursors) ~ ") is not null").rows[0][0] else none) -}}
{%- endmacro %}
