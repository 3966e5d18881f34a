"""What commands have in common: the database the settings name, open for as long as the command runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import click
import psycopg

from loader.postgres.connection import set_session
from loader.postgres.database import Database, open_database
from loader.postgres.lock_holders import name_lock_holders
from loader.settings import Settings, read_settings

# Files were loaded, or messages retried, and some messages are in quarantine.
EXIT_QUARANTINED = 3

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def database(*, for_reader: bool = False) -> Iterator[tuple[Database, Settings]]:
    """Open the database for a command.

    Args:
        for_reader: The command also works with the URL of a reader.

    Raises:
        LoaderError: A setting cannot be read, or the database cannot be used.
    """
    settings = read_settings()
    with open_database(settings, for_reader=for_reader) as opened:
        yield opened, settings


@contextmanager
def autocommit(opened: Database) -> Iterator[psycopg.Connection]:
    """Open a connection to it that commits every statement.

    Raises:
        DatabaseError: Another session holds a lock that the command needs.
    """
    with opened.connect(autocommit=True) as connection, name_lock_holders(connection, "The command stopped"):
        set_session(connection, opened.lock_wait)
        yield connection
