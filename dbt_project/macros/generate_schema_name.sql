{#- Returns the schema of a source without the target's prefix: names of schemas are part of the layout. -#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ custom_schema_name | trim if custom_schema_name else target.schema }}
{%- endmacro %}
