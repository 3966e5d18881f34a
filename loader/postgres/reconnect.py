"""Opens connections for a process that goes on without its database.

A collector does not end when the database does. The collector repeats its calls of the `Connector` until the database
answers and passes the checks. The connector restarts the embedded database if necessary.
"""

import threading

import psycopg

from loader.postgres.connection import connect, set_session, time_limit
from loader.postgres.database import check_database, libpq_url, open_database
from loader.postgres.embedded import EmbeddedServer
from loader.postgres.warehouse import Warehouse
from loader.settings import Settings


class Connector:
    """Opens connections in autocommit; may be called from any thread.

    Args:
        settings: The process's settings.
        warehouse: Updated with the id and the clock of each connection's warehouse.
    """

    def __init__(self, settings: Settings, warehouse: Warehouse) -> None:
        self._settings = settings
        self._warehouse = warehouse
        self._embedded: EmbeddedServer | None = None
        self._starting = threading.Lock()

    def __call__(self) -> psycopg.Connection:
        """Open a connection and check the database's version and raw schema.

        Raises:
            LoaderError: The database does not answer, or its version or its raw schema is not supported.
            psycopg.Error: The connection failed during the checks.
        """
        connection = connect(self._url(), autocommit=True, seconds=self._settings.commit_seconds)
        try:
            with time_limit(connection, self._settings.commit_seconds):
                set_session(connection, self._settings.lock_wait)
                check_database(connection)
                self._warehouse.identify(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """End the registration of this process as a user of the embedded database."""
        if self._embedded:
            self._embedded.release()

    def _url(self) -> str:
        settings = self._settings
        if settings.database_url:
            return libpq_url(settings.database_url)
        with self._starting:
            if self._embedded is None:
                # `open_database` also migrates the raw schema.
                with open_database(settings):
                    embedded = EmbeddedServer(settings.home, port=settings.embedded_port, idle=settings.embedded_idle)
                    embedded.acquire()
                self._embedded = embedded
            return self._embedded.acquire()
