"""Opens plain connections to PostgreSQL: the part of the database that a worker process needs, and nothing heavier."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Timer

import psycopg
from psycopg.conninfo import conninfo_to_dict

from loader.errors import DatabaseError
from loader.postgres.statements import read_statement

CONNECT_SECONDS = 10

APPLICATION_NAME = "loader"

NO_TIMEOUTS = read_statement(__file__, "no_timeouts")

_SET = read_statement(__file__, "settings")


def connect(url: str, *, autocommit: bool = False, seconds: float = CONNECT_SECONDS) -> psycopg.Connection:
    """Open a psycopg connection with the settings every connection of the loader has.

    Args:
        url: A libpq connection URL.
        autocommit: Open no transaction by itself.
        seconds: How long the database may take to answer.

    Raises:
        DatabaseError: The database does not answer.
    """
    try:
        connection = psycopg.connect(
            url,
            connect_timeout=max(round(seconds), 2),
            application_name=APPLICATION_NAME,
            # Events are copied as the bytes they are: UTF-8, whatever the environment and the database have in mind.
            client_encoding="UTF8",
            autocommit=autocommit,
            # Behind a pooler the next transaction may be in a session that knows nothing of what this one has prepared.
            prepare_threshold=None,
        )
    except psycopg.OperationalError as error:
        raise unreachable(url, error) from None
    # Each transaction says so itself, whatever the role or the database has as its default.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    connection.read_only = False
    return connection


def set_session(connection: psycopg.Connection, lock_wait: float) -> None:
    """Set what a role or a database may set otherwise, for statements that are transactions of their own.

    Behind a pooler in transaction mode the settings stay with the server's session, which later clients use.

    Args:
        connection: A connection in autocommit.
        lock_wait: Seconds a statement waits for a lock of somebody else.

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
    """Set settings of the server for a session.

    Args:
        connection: An open connection.
        wanted: The values by name; a name that the server does not know is left out.
        for_transaction: Set them for the present transaction only.

    Raises:
        psycopg.Error: The database does not answer.
    """
    names, values = list(wanted), list(wanted.values())
    connection.execute(_SET, {"for_transaction": for_transaction, "names": names, "values": values})


def unreachable(url: str, error: object) -> DatabaseError:
    """Return what to tell a person when a database does not answer; the password stays out of it."""
    parameters = conninfo_to_dict(url)
    where = f"{parameters.get('host', 'localhost')}:{parameters.get('port', 5432)}/{parameters.get('dbname', '')}"
    reason = " ".join(str(error).split())
    end = "" if reason.endswith((".", "?")) else "."
    return DatabaseError(
        f"Cannot connect to the database at {where}: {reason}{end} Check DATABASE_URL and that the server is up."
    )


@contextmanager
def time_limit(connection: psycopg.Connection, seconds: float) -> Iterator[None]:
    """End a connection whose database has not answered by the end of the block, or of the time.

    A server that is gone without a word, or a proxy that has lost its own, would be waited for without end.

    Args:
        connection: The connection.
        seconds: The time.
    """
    timer = Timer(seconds, cut, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def cut(connection: psycopg.Connection) -> None:
    """End a connection that another thread waits for: it fails there as if the network had."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=socket.dup(connection.fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)
