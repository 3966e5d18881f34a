{#-
    Tests that a ledger has no row, or none that the test's `where` selects. The ledgers are production's, so that a developer's
    run neither fails for them nor needs the right to count the rows of production's tables.
-#}
{% test no_rows(model) %}
    select * from {{ model }}
    {{ 'where false' if not is_production() }}
{% endtest %}
