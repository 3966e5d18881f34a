-- This lock blocks nothing. `loader rescan` looks it up to find landing transactions older than the rebuild.
lock table raw.generation in row share mode;
select
    number,
    pg_relation_filepath('raw.properties'),
    pg_postmaster_start_time()
from raw.generation
