{#- Tests that a collection's table holds events of its own name only, in the schema of every source. -#}
{% test one_event(model) %}
    {%- for source_name, filled in filled_tables().items() if model.identifier in filled %}
    select id, event from {{ model.incorporate(path={'schema': target_schema(source_name)}) }} where event is distinct from '{{ model.identifier }}'
    union all
    {%- endfor %}
    select '' as id, '' as event where false
{% endtest %}
