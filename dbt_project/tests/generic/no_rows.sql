{#- Tests that a ledger has no row, or none that the test's `where` selects. -#}
{% test no_rows(model) %}
    select * from {{ model }}
{% endtest %}
