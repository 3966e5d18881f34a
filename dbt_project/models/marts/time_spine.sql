{{ config(materialized='mart_view') }}
-- A run creates the schema of a new source with this model.
-- depends_on: {{ ref('int_arrivals') }}
select generate_series(date '2010-01-01', (current_date + interval '2 years')::date, interval '1 day')::date as date_day
