"""The asynchronous connections of a process: opened while the database answers, closed while it is away.

No event depends on these connections, because the writing thread can land every batch. So a thread opens the
connections in the background. A database that refuses or breaks a connection costs time, but no event is lost.
"""

import asyncio
import threading
import time
from collections.abc import Callable

import psycopg
import structlog

from loader.buffer.async_connection import AsyncConnection
from loader.buffer.spool_replay import describe

CONNECTIONS = 2

# Pause before the next attempt after a connection could not be opened.
_AGAIN_SECONDS = 2.0

# How long `close` waits for a connection that is being opened.
_JOIN_SECONDS = 60.0

log = structlog.get_logger("loader")


class ConnectionPool:
    """The asynchronous connections to one database; call its methods from the thread of the event loop.

    Args:
        connect: Opens a connection to the database, in autocommit; may raise any exception.
        loop: The event loop.
        seconds: How long the database may take for a statement.
        wanted: Returns whether the pool may open connections now.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        wanted: Callable[[], bool],
    ) -> None:
        self._connect = connect
        self._loop = loop
        self._seconds = seconds
        self._wanted = wanted
        self._connections: list[AsyncConnection] = []
        # Connections that get no further batch, but are still busy.
        self._retired: list[AsyncConnection] = []
        self._opening: threading.Thread | None = None
        self._open_again = 0.0

    def __len__(self) -> int:
        """Return the number of connections in use."""
        return len(self._connections)

    @property
    def are_busy(self) -> bool:
        """Whether a statement is under way on any connection, retired connections included."""
        return any(connection.is_busy for connection in (*self._connections, *self._retired))

    def free(self) -> AsyncConnection | None:
        """Return a connection that is not busy; None when all connections are busy."""
        return next((connection for connection in self._connections if not connection.is_busy), None)

    def released(self, connection: AsyncConnection) -> None:
        """Close a connection that has finished its statement, if the connection is retired."""
        if connection in self._retired:
            self._retired.remove(connection)
            connection.close()

    def retire(self) -> None:
        """Retire all connections: close them now, or after the statement under way."""
        self._retire(self._connections)

    def mend(self) -> None:
        """Retire broken connections, and open missing connections, each after the previous connection."""
        for connection in (*self._connections, *self._retired):
            connection.notice()
        self._retire([connection for connection in self._connections if not connection.is_whole()])
        missing = len(self._connections) < CONNECTIONS and not self._opening and self._wanted()
        if missing and time.monotonic() >= self._open_again:
            self._opening = threading.Thread(target=self._open, name="loader-pool", daemon=True)
            self._opening.start()

    def cut_late(self) -> bool:
        """Shut down all connections whose statement takes too long, retired connections included.

        Returns:
            Whether there was such a connection.
        """
        late = [connection for connection in (*self._connections, *self._retired) if connection.is_late()]
        for connection in late:
            connection.cut()
        return bool(late)

    async def close(self) -> None:
        """Close all connections; no connection may be busy, and `wanted` must return False."""
        if self._opening:
            await asyncio.to_thread(self._opening.join, _JOIN_SECONDS)
        self.retire()

    def _retire(self, connections: list[AsyncConnection]) -> None:
        self._connections = [connection for connection in self._connections if connection not in connections]
        for connection in connections:
            if connection.is_busy:
                self._retired.append(connection)
            else:
                connection.close()

    def _open(self) -> None:
        """Open a connection, in a thread of its own, because the database may take long."""
        connection = None
        try:
            connection = self._connect()
        except Exception as error:  # noqa: BLE001 - the writing thread lands events without this connection
            log.warning("a second connection for events could not be opened", reason=describe(error))
        self._loop.call_soon_threadsafe(self._opened, connection)

    def _opened(self, connection: psycopg.Connection | None) -> None:
        self._opening = None
        if connection is None:
            self._open_again = time.monotonic() + _AGAIN_SECONDS
        elif self._wanted():
            self._connections.append(AsyncConnection(connection, self._loop, self._seconds))
            self.mend()
        else:
            connection.close()
