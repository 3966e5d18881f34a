{{ config(materialized='mart_arrivals') }}
-- No table of rows. The run logs the ids of the events that the collections have got since the last run of the marts.
{% for collection in message_collections() %}
-- depends_on: {{ ref(collection.name) }}
{%- endfor %}
-- depends_on: {{ ref('tracks') }}
-- depends_on: {{ ref('found_collections') }}
select 1 as nothing
