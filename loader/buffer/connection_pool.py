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
        self._opening: threading.Thread | None = None
        self._open_again = 0.0

    def __len__(self) -> int:
        """Return the number of connections that take batches."""
        return sum(not connection.is_retired for connection in self._connections)

    @property
    def are_busy(self) -> bool:
        """Whether a statement is under way on any connection, retired connections included."""
        return any(connection.is_busy for connection in self._connections)

    def free(self) -> AsyncConnection | None:
        """Return a connection that can take a batch; None when all connections are busy."""
        return next((each for each in self._connections if not each.is_busy and not each.is_retired), None)

    def released(self, connection: AsyncConnection) -> None:
        """Close a connection that has finished its statement, if the connection is retired."""
        if connection.is_retired:
            self._connections.remove(connection)
            connection.close()

    def retire(self, *, only_broken: bool = False) -> None:
        """Retire connections: close them now, or after the statement under way."""
        for connection in [each for each in self._connections if not (only_broken and each.is_whole())]:
            connection.is_retired = True
            if not connection.is_busy:
                self.released(connection)

    def mend(self) -> None:
        """Retire broken connections, and open missing connections, each after the previous connection."""
        for connection in self._connections.copy():
            connection.notice()
        self.retire(only_broken=True)
        missing = len(self) < CONNECTIONS and not self._opening and self._wanted()
        if missing and time.monotonic() >= self._open_again:
            self._opening = threading.Thread(target=self._open, name="loader-pool", daemon=True)
            self._opening.start()

    def cut_late(self) -> bool:
        """Shut down all connections whose statement takes too long; return whether there was such a connection."""
        late = [connection for connection in self._connections if connection.is_late()]
        for connection in late:
            connection.cut()
        return bool(late)

    async def close(self) -> None:
        """Close all connections; no connection may be busy, and `wanted` must return False."""
        if self._opening:
            await asyncio.to_thread(self._opening.join, _JOIN_SECONDS)
        self.retire()

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
