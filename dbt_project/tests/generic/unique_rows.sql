{#- Tests that no two rows of a view have the same values in some columns. A table has a primary key instead. -#}
{% test unique_rows(model, columns) %}
    select {{ columns | join(", ") }}
    from {{ model }}
    group by {{ columns | join(", ") }}
    having count(*) > 1
{% endtest %}
