{{ config(materialized='found_collections') }}
-- One table per collection without a model. The macros write the SQL of each table.
select 1 as nothing
