{#-
    Returns the schema of a model. Names of schemas are part of the layout, so production's have no prefix. The schemas of any
    other target begin with the target's own schema.
-#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ target_schema(custom_schema_name | trim) if custom_schema_name else target.schema }}
{%- endmacro %}
