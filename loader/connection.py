"""Opens plain connections to PostgreSQL: the part of the database that a worker process needs, and nothing heavier."""

import psycopg
from psycopg.conninfo import conninfo_to_dict

from loader.errors import DatabaseError

CONNECT_SECONDS = 10

APPLICATION_NAME = "loader"


def connect(url: str, *, autocommit: bool = False) -> psycopg.Connection:
    """Open a psycopg connection with the settings every connection of the loader has.

    Args:
        url: A libpq connection URL.
        autocommit: Open no transaction by itself.

    Raises:
        DatabaseError: The database does not answer.
    """
    try:
        return psycopg.connect(
            url,
            connect_timeout=CONNECT_SECONDS,
            application_name=APPLICATION_NAME,
            # Events are copied as the bytes they are: UTF-8, whatever the environment and the database have in mind.
            client_encoding="UTF8",
            autocommit=autocommit,
        )
    except psycopg.OperationalError as error:
        raise unreachable(url, error) from None


def unreachable(url: str, error: object) -> DatabaseError:
    """Return what to tell a person when a database does not answer; the password stays out of it."""
    parameters = conninfo_to_dict(url)
    where = f"{parameters.get('host', 'localhost')}:{parameters.get('port', 5432)}/{parameters.get('dbname', '')}"
    reason = " ".join(str(error).split())
    return DatabaseError(
        f"Cannot connect to the database at {where}: {reason}. Check DATABASE_URL and that the server is up."
    )
