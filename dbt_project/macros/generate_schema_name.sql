{#- A source's tables live in the schema named after the source, without the target's prefix: the layout is a contract. -#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ custom_schema_name | trim if custom_schema_name else target.schema }}
{%- endmacro %}
