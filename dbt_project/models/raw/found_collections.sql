{{ config(materialized='found_collections') }}
-- One table per collection without a model. The macros write the SQL of each table from these events.
-- depends_on: {{ source('raw', 'events') }}
select 1 as nothing
