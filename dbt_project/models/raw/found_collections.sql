{{ config(materialized='found_collections') }}
-- One table per collection without a model; the macros write the SQL of each.
select 1 as nothing
