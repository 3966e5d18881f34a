-- The lock keeps nobody out. It shows `loader rescan` whose landing began before the record was made again.
lock table raw.generation in row share mode;
select
    number,
    pg_relation_filepath('raw.properties'),
    pg_postmaster_start_time()
from raw.generation
