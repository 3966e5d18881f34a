select
    virtualtransaction,
    pid
from pg_locks
where
    database = (
        select pg_database.oid from pg_database
        where pg_database.datname = current_database()
    )
    and (
        (relation = 'raw.generation'::regclass and mode = 'RowShareLock')
        -- A collector's COPY asks for nothing but this.
        or (relation = 'raw.events'::regclass and mode = 'RowExclusiveLock')
    )
