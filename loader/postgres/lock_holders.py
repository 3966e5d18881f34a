"""Names the sessions that hold the locks a statement has waited for.

PostgreSQL reports only that a lock was not available. A person needs the process, its user and its transaction's age.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from loader.errors import DatabaseError
from loader.postgres.statements import read_statement

LOCK_NOT_AVAILABLE = "55P03"

_HOLDERS = read_statement(__file__, "sessions")


def lock_error(connection: psycopg.Connection, outcome: str) -> DatabaseError:
    """Return an error that names three sessions that hold locks, those with the oldest transactions.

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
