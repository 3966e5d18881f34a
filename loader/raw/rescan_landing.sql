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
        -- A COPY that a person runs by hand holds no other lock.
        or (relation = 'raw.events'::regclass and mode = 'RowExclusiveLock')
    )
