"""Opens connections for a process that outlives its database.

A collector does not end because the database does. It asks here for a connection again and again, and gets one as soon
as there is a database that will do; the embedded one is started again on the way.
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
        warehouse: Learns from each connection what is to be known of the warehouse.
    """

    def __init__(self, settings: Settings, warehouse: Warehouse) -> None:
        self._settings = settings
        self._warehouse = warehouse
        self._embedded: EmbeddedServer | None = None
        self._starting = threading.Lock()

    def __call__(self) -> psycopg.Connection:
        """Open a connection to a database that will do.

        Raises:
            LoaderError: There is none at the moment.
            psycopg.Error: It failed just now.
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
        """Declare that this process no longer uses the embedded database."""
        if self._embedded:
            self._embedded.release()

    def _url(self) -> str:
        settings = self._settings
        if settings.database_url:
            return libpq_url(settings.database_url)
        with self._starting:
            if self._embedded is None:
                # Brings the raw schema up on the way.
                with open_database(settings):
                    embedded = EmbeddedServer(settings.home, port=settings.embedded_port, idle=settings.embedded_idle)
                    embedded.acquire()
                self._embedded = embedded
            return self._embedded.acquire()
