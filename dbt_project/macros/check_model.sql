{#- Fails where dbt's config asks for a table that a run cannot make, and names the remedy. -#}

{#- Fails for versions of a model, and for an alias of a table of the layout. -#}
{% macro check_model() %}
    {%- if model.version is defined and model.version is not none -%}
        {%- do exceptions.raise_compiler_error(
            "Model " ~ model.name ~ " has versions. A table has the name of its event, so it has one version. Remove the versions from the yml, and make a view for readers of the other columns."
        ) -%}
    {%- elif model.alias != model.name and is_event(model.name) -%}
        {%- do exceptions.raise_compiler_error(
            "Model " ~ model.name ~ " has the alias " ~ model.alias ~ ". A table has the name of its event, and " ~ model.name ~ " is the name of an event. Remove the alias, and make a view of the other name."
        ) -%}
    {%- endif -%}
{% endmacro %}


{#- Tells whether events of a name have a partition of raw.events, or have come in. -#}
{% macro is_event(name) %}
    {%- set query -%}
        select
            to_regclass({{ string_literal("raw." ~ adapter.quote("events_" ~ name)) }}) is not null
            or exists (select from raw.collections where collection = {{ string_literal(name) }})
    {%- endset -%}
    {{ return(run_query(query).rows[0][0]) }}
{% endmacro %}


{#-
    Fails where a model enforces a contract that its table cannot keep: with found columns, with other columns in its SQL than
    in its yml, or with constraints that a run does not make.
-#}
{% macro check_contract(own_sql) %}
    {%- if not config.get('contract', {}).enforced -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set name = "Model " ~ model.name ~ " enforces a contract" -%}
    {%- if own_sql is none -%}
        {%- do exceptions.raise_compiler_error(
            name ~ ", and a run adds found columns that the contract does not list. Set found_columns to false in the model's config.meta, or remove the contract."
        ) -%}
    {%- endif -%}
    {%- set constraints = [] -%}
    {%- for constraint in model.constraints if constraint.type != 'primary_key' or constraint.columns != ['id'] -%}
        {%- do constraints.append(constraint.type) -%}
    {%- endfor -%}
    {%- for column in model.columns.values() if column.name != 'id' -%}
        {%- do constraints.extend(column.constraints | map(attribute='type') | list) -%}
    {%- endfor -%}
    {%- if constraints -%}
        {%- do exceptions.raise_compiler_error(
            name ~ " with constraints: " ~ constraints | join(", ") ~ ". A table has the primary key id and no other constraint. Remove the constraints, and use data tests."
        ) -%}
    {%- endif -%}
    {%- do get_assert_columns_equivalent(own_sql) -%}
{% endmacro %}
