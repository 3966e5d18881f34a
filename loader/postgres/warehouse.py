"""Keeps the warehouse's id and the offset of the database's clock for a long-lived process.

Both are read when a connection is opened, and every few seconds together with the write keys. Batches need no query.
"""

from datetime import UTC, datetime, timedelta

import psycopg
import structlog

from loader.errors import DatabaseError
from loader.runtime import metrics

# A larger difference between the clocks is a warning in the log.
_WARN_SECONDS = 1.0

_LOOK = "select warehouse_id::text, clock_timestamp() from raw.cluster"
_RENEW = "update raw.cluster set warehouse_id = gen_random_uuid() returning warehouse_id::text"

log = structlog.get_logger("loader")


def wall_clock() -> datetime:
    """Return the time of this machine's clock."""
    return datetime.now(UTC)


class Warehouse:
    """The id and the clock of a process's warehouse; may be used from any thread.

    Attributes:
        id: The warehouse's id; empty while the id is unknown.
        is_measured: Whether the offset of the database's clock has been measured.
    """

    def __init__(self) -> None:
        self.id = ""
        self.is_measured = False
        self._offset = timedelta()
        self._warned_offset = 0.0

    def identify(self, connection: psycopg.Connection) -> str:
        """Read the warehouse's id and its clock over a connection, and keep both.

        Args:
            connection: A connection in autocommit.

        Returns:
            The id of the warehouse behind this connection.

        Raises:
            DatabaseError: The database has no id.
            psycopg.Error: The database does not answer.
        """
        before = wall_clock()
        row = connection.execute(_LOOK).fetchone()
        after = wall_clock()
        if row is None:
            raise DatabaseError("raw.cluster is empty, so the warehouse has no id. Restore raw.cluster from a backup.")
        if self.id and self.id != row[0]:
            log.warning("DATABASE_URL names another warehouse now", before=self.id, now=row[0])
        self.id = row[0]
        self._measure(row[1] - after, row[1] - before)
        return self.id

    def now(self) -> datetime:
        """Return the time of the database's clock; before the first measurement, that of this machine's clock."""
        return wall_clock() + self._offset if self._offset else wall_clock()

    def correct(self, moment: datetime) -> datetime:
        """Convert a time of this machine's clock to the database's clock."""
        return moment + self._offset

    def _measure(self, least: timedelta, most: timedelta) -> None:
        """Move the offset to the middle of its measured bounds, unless the present offset lies between them."""
        if not least <= self._offset <= most:
            self._offset = (least + most) / 2
        self.is_measured = True
        seconds = self._offset.total_seconds()
        metrics.clock_offset_seconds.set(seconds)
        if abs(seconds - self._warned_offset) < _WARN_SECONDS:
            return
        self._warned_offset = seconds
        if abs(seconds) >= _WARN_SECONDS:
            log.warning(
                "this machine's clock and the database's differ; received_at follows the database's",
                database_is_ahead_by_seconds=round(seconds, 1),
            )
        else:
            log.info("this machine's clock and the database's agree again")


def renew_id(connection: psycopg.Connection) -> str:
    """Give the warehouse a new id, and return that id.

    Args:
        connection: A connection in autocommit.

    Raises:
        DatabaseError: The database has no id.
    """
    row = connection.execute(_RENEW).fetchone()
    if row is None:
        raise DatabaseError("raw.cluster is empty, so the warehouse has no id. Restore raw.cluster from a backup.")
    return str(row[0])
