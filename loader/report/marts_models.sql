-- The attribution models of the marts.
select distinct model
from %(marts)s.attributions
order by model
