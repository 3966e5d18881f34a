"""Opens psycopg connections to PostgreSQL, without the imports that would slow the start of a worker process."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Timer

import psycopg
from psycopg.conninfo import conninfo_to_dict

from loader.errors import DatabaseError

CONNECT_SECONDS = 10

APPLICATION_NAME = "loader"

# Removes the time limits of a role or a database for one transaction, because an upgrade may exceed them.
# PostgreSQL 16 has no transaction_timeout.
NO_TIMEOUTS = """
    set local statement_timeout = 0;
    set local idle_in_transaction_session_timeout = 0;
    select set_config('transaction_timeout', '0', true) where current_setting('transaction_timeout', true) is not null
"""

# Settings that the server does not know are left out, and so are settings that have the value already.
_SET = """
    select set_config(name, wanted, %s)
    from unnest(%s::text[], %s::text[]) as settings (name, wanted)
    where current_setting(name, true) <> wanted
"""


def connect(url: str, *, autocommit: bool = False, seconds: float = CONNECT_SECONDS) -> psycopg.Connection:
    """Open a psycopg connection with the settings that all connections of the loader have.

    Args:
        url: A libpq connection URL.
        autocommit: Commit each statement by itself.
        seconds: Time limit for the database's answer; libpq's minimum is 2 s.

    Raises:
        DatabaseError: The database does not answer.
    """
    try:
        connection = psycopg.connect(
            url,
            connect_timeout=max(round(seconds), 2),
            application_name=APPLICATION_NAME,
            # Events are copied as their UTF-8 bytes, regardless of the encodings of environment and database.
            client_encoding="UTF8",
            autocommit=autocommit,
            # Behind a pooler, the next transaction may run in a session that lacks the prepared statements of this one.
            prepare_threshold=None,
        )
    except psycopg.OperationalError as error:
        raise unreachable(url, error) from None
    # psycopg names both in each BEGIN, so the defaults of the role and the database do not apply.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    connection.read_only = False
    return connection


def set_session(connection: psycopg.Connection, lock_wait: float) -> None:
    """Override the settings of a role or a database for a session whose statements are separate transactions.

    Behind a pooler in transaction mode, the settings stay with the server's session, which later clients use.

    Args:
        connection: A connection in autocommit.
        lock_wait: Seconds that a statement waits for a lock of another session.

    Raises:
        psycopg.Error: The database does not answer.
    """
    wanted = {
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "statement_timeout": "0",
        "lock_timeout": f"{lock_wait * 1000:.0f}ms",
        "idle_in_transaction_session_timeout": "0",
        "transaction_timeout": "0",
    }
    apply_settings(connection, wanted)


def apply_settings(connection: psycopg.Connection, wanted: Mapping[str, str], *, for_transaction: bool = False) -> None:
    """Change settings of the server for a session or for one transaction.

    Args:
        connection: An open connection.
        wanted: The values by name; names that the server does not know are left out.
        for_transaction: Change them for the current transaction only.

    Raises:
        psycopg.Error: The database does not answer.
    """
    connection.execute(_SET, [for_transaction, list(wanted), list(wanted.values())])


def unreachable(url: str, error: object) -> DatabaseError:
    """Return the error for a database that does not answer; its message does not contain the password.

    Args:
        url: A libpq connection URL.
        error: The reason, such as an exception of psycopg.
    """
    parameters = conninfo_to_dict(url)
    where = f"{parameters.get('host', 'localhost')}:{parameters.get('port', 5432)}/{parameters.get('dbname', '')}"
    reason = " ".join(str(error).split())
    end = "" if reason.endswith((".", "?")) else "."
    return DatabaseError(
        f"Cannot connect to the database at {where}: {reason}{end} Check DATABASE_URL and that the server is up."
    )


@contextmanager
def time_limit(connection: psycopg.Connection, seconds: float) -> Iterator[None]:
    """Cut a connection if the block takes longer than a time limit; the waiting call in the block then fails.

    Without a limit, a client waits forever for a server that has vanished, or for a proxy that has lost its server.

    Args:
        connection: The connection.
        seconds: The time limit.
    """
    timer = Timer(seconds, cut, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def cut(connection: psycopg.Connection) -> None:
    """Shut down the socket of a connection; the thread that waits for the connection gets a network error."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=socket.dup(connection.fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)
