"""The wires there are: opened while the database is there, given up when it is not, and never waited for.

Nothing depends on them: what finds no wire goes by the writing thread. So they are opened beside everything else, and a
database that grants no more connections, or breaks one, costs time and no event.
"""

import asyncio
import threading
import time
from collections.abc import Callable

import psycopg
import structlog

from loader.buffer.async_connection import Wire
from loader.buffer.spool_replay import describe
from loader.raw.copy_format import INSERT

WIRES = 2

# Until the next attempt, when one could not be opened.
_AGAIN_SECONDS = 2.0

# How long the end waits for a connection that is being opened.
_JOIN_SECONDS = 60.0

log = structlog.get_logger("loader")


class Wires:
    """Wires to one database; for the event loop's thread.

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
        self._wires: list[Wire] = []
        # No longer used, but still busy.
        self._retired: list[Wire] = []
        self._opening: threading.Thread | None = None
        self._open_again = 0.0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._wires)

    @property
    def are_busy(self) -> bool:
        """Whether anything is under way."""
        return any(wire.is_busy for wire in (*self._wires, *self._retired))

    def free(self) -> Wire | None:
        """Return one that is not busy, if there is one."""
        return next((wire for wire in self._wires if not wire.is_busy), None)

    def released(self, wire: Wire) -> None:
        """Take note that a wire is done."""
        if wire in self._retired:
            self._retired.remove(wire)
            wire.close()

    def retire(self) -> None:
        """Use none of them any more; one that is busy is closed when it is done."""
        self._retire(self._wires)

    def mend(self) -> None:
        """Find out which are broken, replace them, and open those that are missing, one after the other."""
        for wire in (*self._wires, *self._retired):
            wire.notice()
        self._retire([wire for wire in self._wires if not wire.is_whole()])
        missing = len(self._wires) < WIRES and not self._opening and self._wanted()
        if missing and time.monotonic() >= self._open_again:
            self._opening = threading.Thread(target=self._open, name="loader-wire", daemon=True)
            self._opening.start()

    def cut_late(self) -> bool:
        """Cut those whose database takes too long, retired or not; say whether there were any."""
        late = [wire for wire in (*self._wires, *self._retired) if wire.is_late()]
        for wire in late:
            wire.cut()
        return bool(late)

    async def close(self) -> None:
        """Close them all; none is wanted any more, and none is busy."""
        if self._opening:
            await asyncio.to_thread(self._opening.join, _JOIN_SECONDS)
        self.retire()

    def _retire(self, wires: list[Wire]) -> None:
        self._wires = [wire for wire in self._wires if wire not in wires]
        for wire in wires:
            if wire.is_busy:
                self._retired.append(wire)
            else:
                wire.close()

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
            self._wires.append(Wire(connection, self._loop, self._seconds, INSERT))
            self.mend()
        else:
            connection.close()
