"""Names the sessions that hold the locks a statement has waited for.

PostgreSQL says only that a lock was not to be had. A person needs the process, its user and its transaction's age.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from loader.errors import DatabaseError
from loader.postgres.statements import read_statement

LOCK_NOT_AVAILABLE = "55P03"

_HOLDERS = read_statement(__file__, "sessions")


def lock_error(connection: psycopg.Connection, outcome: str) -> DatabaseError:
    """Return an error that names the sessions that hold locks.

    Args:
        connection: A connection that can take a query.
        outcome: The consequence for the work, as the beginning of a sentence.
    """
    holders = "; ".join(name for (name,) in connection.execute(_HOLDERS).fetchall())
    return DatabaseError(
        f"{outcome}: a lock was in the way, held by {holders or 'a session that has ended since'}. End that "
        "transaction, then run this again."
    )


@contextmanager
def name_lock_holders(connection: psycopg.Connection, outcome: str) -> Iterator[None]:
    """Turn an error about a lock that was waited for too long into one that names the sessions in the way.

    Args:
        connection: The connection that the statements of the block use, outside of a transaction when the block ends.
        outcome: The consequence for the work, as the beginning of a sentence.

    Raises:
        DatabaseError: A lock was not to be had.
    """
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        raise lock_error(connection, outcome) from None
