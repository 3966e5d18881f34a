{{ config(materialized='mart_arrivals') }}
-- No table of rows. The run logs the ids of the events that the tables of conversions have got, where this product fills them.
-- depends_on: {{ ref('int_arrivals') }}
select 1 as nothing
