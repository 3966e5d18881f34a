-- The variables with which the marts of a source were made.
select
    max(variables ->> 'marts_time_zone') as time_zone,
    max(variables ->> 'primary_attribution_model') as model
from raw.marts
where source = %(source_schema)s
