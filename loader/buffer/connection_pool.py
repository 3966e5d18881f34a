"""The asynchronous connections of a process: opened while the database answers, closed when it does not.

No event depends on them: a batch that finds no free connection goes to the writing thread. So a thread opens them in
the background. A database that grants no more connections, or breaks one, costs time and no event.
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

# Until the next attempt, when one could not be opened.
_AGAIN_SECONDS = 2.0

# How long the end waits for a connection that is being opened.
_JOIN_SECONDS = 60.0

log = structlog.get_logger("loader")


class ConnectionPool:
    """The asynchronous connections to one database; for the event loop's thread.

    Args:
        connect: Opens a connection to the database, in autocommit; raises what it likes when it cannot.
        loop: The event loop.
        seconds: How long the database may take for a statement.
        wanted: Says whether there are to be any at the moment.
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
        # No longer used, but still busy.
        self._retired: list[AsyncConnection] = []
        self._opening: threading.Thread | None = None
        self._open_again = 0.0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._connections)

    @property
    def are_busy(self) -> bool:
        """Whether anything is under way."""
        return any(connection.is_busy for connection in (*self._connections, *self._retired))

    def free(self) -> AsyncConnection | None:
        """Return one that is not busy, if there is one."""
        return next((connection for connection in self._connections if not connection.is_busy), None)

    def released(self, connection: AsyncConnection) -> None:
        """Take note that a connection is done."""
        if connection in self._retired:
            self._retired.remove(connection)
            connection.close()

    def retire(self) -> None:
        """Use none of them any more; one that is busy is closed when it is done."""
        self._retire(self._connections)

    def mend(self) -> None:
        """Find out which are broken, replace them, and open those that are missing, one after the other."""
        for connection in (*self._connections, *self._retired):
            connection.notice()
        self._retire([connection for connection in self._connections if not connection.is_whole()])
        missing = len(self._connections) < CONNECTIONS and not self._opening and self._wanted()
        if missing and time.monotonic() >= self._open_again:
            self._opening = threading.Thread(target=self._open, name="loader-pool", daemon=True)
            self._opening.start()

    def cut_late(self) -> bool:
        """Cut those whose database takes too long, retired or not; say whether there were any."""
        late = [connection for connection in (*self._connections, *self._retired) if connection.is_late()]
        for connection in late:
            connection.cut()
        return bool(late)

    async def close(self) -> None:
        """Close them all; none is wanted any more, and none is busy."""
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
        """Open a connection, in a thread: the database may take its time."""
        connection = None
        try:
            connection = self._connect()
        except Exception as error:  # noqa: BLE001 - events go on without it
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
