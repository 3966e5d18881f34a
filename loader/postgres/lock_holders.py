"""Names the sessions that hold the locks a statement has waited for.

PostgreSQL reports only that a lock was not available. A person needs the process, its user and its transaction's age.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from loader.errors import DatabaseError

LOCK_NOT_AVAILABLE = "55P03"

# The oldest transactions come first, because they are the most likely cause.
_HOLDERS = """
    select
        format('process %s', pid)
        || coalesce(format(' of user %s', usename), '')
        || coalesce(format(' (%s)', nullif(application_name, '')), '')
        || format(', in a transaction since %s, with locks on ', date_trunc('second', min(xact_start)))
        || string_agg(distinct format('%s.%s', nspname, relname), ', ')
    from pg_locks
    inner join pg_class on pg_class.oid = pg_locks.relation
    inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
    inner join pg_stat_activity using (pid)
    where
        pg_locks.locktype = 'relation'
        and pg_locks.database = (select oid from pg_database where datname = current_database())
        and pg_locks.granted
        and pg_class.relkind in ('r', 'p', 'v', 'm')
        and pid <> pg_backend_pid()
        and nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
    group by pid, usename, application_name
    order by min(xact_start)
    limit 3
"""


def lock_error(connection: psycopg.Connection, outcome: str) -> DatabaseError:
    """Return an error that names the three sessions with the oldest transactions among those that hold locks.

    Args:
        connection: A connection that can run a query.
        outcome: The consequence for the work, as the beginning of a sentence.
    """
    holders = "; ".join(name for (name,) in connection.execute(_HOLDERS).fetchall())
    return DatabaseError(
        f"{outcome}: a lock was in the way, held by {holders or 'a session that has ended since'}. End that "
        "transaction, then run this again."
    )


@contextmanager
def name_lock_holders(connection: psycopg.Connection, outcome: str) -> Iterator[None]:
    """Replace the error of a lock timeout in the block by an error that names the blocking sessions.

    Args:
        connection: The connection that the block uses; no transaction is open on it at the end of the block.
        outcome: The consequence for the work, as the beginning of a sentence.

    Raises:
        DatabaseError: A statement waited too long for a lock.
    """
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        raise lock_error(connection, outcome) from None
