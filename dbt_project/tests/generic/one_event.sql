{#- A collection's table holds events of its own name and no others, in the schema of every source. -#}
{% test one_event(model) %}
    {%- for source_name in (registered_sources() if execute else []) %}
    select id, event from {{ model.incorporate(path={'schema': source_name}) }} where event is distinct from '{{ model.identifier }}'
    {{ "union all" if not loop.last }}
    {%- else %}
    select 1 as nothing where false
    {%- endfor %}
{% endtest %}
