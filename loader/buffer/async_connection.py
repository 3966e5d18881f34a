"""An asynchronous database connection, driven by the event loop, that lands batches without blocking.

A thread would have to be woken for each step, and would wait for the interpreter each time. For a batch of a few dozen
events, that takes longer than the database's own work. The steps here are those of libpq's asynchronous interface:
https://www.postgresql.org/docs/current/libpq-async.html and libpq-copy.html
"""

import asyncio
import time
from collections.abc import Callable

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from loader.postgres.connection import cut
from loader.raw.batches import LandingStatement

_BINARY = 1

_Done = Callable[[Exception | None], None]


class AsyncConnection:
    """A connection that runs one statement at a time; call its methods from the thread of the event loop.

    Args:
        connection: A connection in autocommit, so that each statement is a transaction of its own.
        loop: The event loop.
        seconds: How long the server may take for a statement.

    Attributes:
        is_busy: Whether a statement is under way.
        is_retired: Whether the connection takes no further statement.
    """

    def __init__(self, connection: psycopg.Connection, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.is_busy = self.is_retired = False
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._loop = loop
        self._seconds = seconds
        # The event loop watches the socket from the start, because a connection may end without a statement under way.
        self._socket = self._pgconn.socket if self.is_whole() else -1
        if self._socket >= 0:
            loop.add_reader(self._socket, self._read)
        self._deadline = float("inf")
        self._copied = b""
        self._error: Exception | None = None
        self._done: _Done = lambda _: None

    def execute(self, statement: LandingStatement, done: _Done) -> None:
        """Run a statement, without preparing the statement.

        Behind a pooler, the server's session may have lost a prepared statement, or have that of another process.

        Args:
            statement: The statement.
            done: Called with None when the statement is committed, else with the error. After an error, the statement
                is not committed, or its outcome is unknown.
        """
        self.is_busy = True
        self._deadline = time.monotonic() + self._seconds
        self._copied, self._error, self._done = statement.copied, None, done
        arguments = statement.arguments
        try:
            if arguments:
                self._pgconn.send_query_params(statement.text, arguments, param_formats=[_BINARY] * len(arguments))
            else:
                self._pgconn.send_query(statement.text)
        except psycopg.Error as error:
            # The error is reported later, because callers expect `execute` to return before `done` is called.
            self._loop.call_soon(self._end, error)
            return
        self._flush()

    def is_late(self) -> bool:
        """Return whether the server has taken too long for the statement under way."""
        return time.monotonic() > self._deadline

    def is_whole(self) -> bool:
        """Return whether the connection works, so that it can be used now or after the statement under way."""
        return self._pgconn.status == ConnStatus.OK

    def notice(self) -> None:
        """Read from the socket although the event loop has reported nothing.

        This finds a connection that was reset behind the server's last bytes. libuv reports those bytes and the reset
        as one event, and then stops watching the socket (`uv__poll_io` in its src/unix/poll.c). So the bytes are read,
        but the reset goes unnoticed.
        """
        if self._socket >= 0:
            self._read()

    def cut(self) -> None:
        """Shut down a connection whose server takes too long; the statement under way fails."""
        self._deadline = float("inf")
        cut(self._connection)

    def close(self) -> None:
        """Close the connection; a statement under way fails."""
        self._let_go()
        if self.is_busy:
            self._end(psycopg.OperationalError("closed"))
        self._connection.close()

    def _flush(self) -> None:
        """Send the data that libpq holds; the event loop sends the rest when the socket can take more."""
        try:
            if self._pgconn.flush():
                self._loop.add_writer(self._socket, self._flush)
            else:
                self._loop.remove_writer(self._socket)
        except psycopg.Error as error:
            self._end(error)

    def _read(self) -> None:
        """Read the server's answer and take the next step of the statement."""
        try:
            self._pgconn.consume_input()
            if not self.is_busy:
                # The server has sent a notice, or the connection has ended. The next statement finds out the end.
                return
            while not self._pgconn.is_busy():
                result = self._pgconn.get_result()
                if result is None:
                    self._end(self._error)
                    return
                if result.status == ExecStatus.COPY_IN:
                    data, self._copied = self._copied, b""
                    self._pgconn.put_copy_data(data)
                    self._pgconn.put_copy_end()
                    self._flush()
                    return
                if result.status not in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
                    self._error = self._error or _failure(result)
        except psycopg.Error as error:
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if not self.is_whole():
            self._let_go()
        self._deadline = float("inf")
        self.is_busy = False
        done, self._done = self._done, lambda _: None
        done(error)

    def _let_go(self) -> None:
        """Stop watching the socket, before the socket is closed."""
        if self._socket >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket = -1


def _failure(result: PGresult) -> psycopg.Error:
    return psycopg.DatabaseError(result.error_message.decode(errors="replace"))
