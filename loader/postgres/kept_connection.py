"""Keeps one connection for work that is repeated, and opens the connection again after an error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from loader.postgres.connection import cut, time_limit


class KeptConnection:
    """A connection that is opened at its first use, and again after an error; one thread may use it at a time.

    Args:
        connect: Opens a connection.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection]) -> None:
        self._connect = connect
        self._connection: psycopg.Connection | None = None

    @contextmanager
    def use(self, seconds: float) -> Iterator[psycopg.Connection]:
        """Give the connection to a `with` block; an error in the block closes the connection.

        Args:
            seconds: How long the block may take before the connection is cut.
        """
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        try:
            with time_limit(self._connection, seconds):
                yield self._connection
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """Shut down the connection from any thread; the block that uses the connection gets an error."""
        if self._connection:
            cut(self._connection)

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection:
            self._connection.close()
