"""Rows written over a connection of their own, driven by the event loop.

A thread would have to be woken for each step, and wait for the interpreter each time: for a batch of a few dozen events
that takes longer than the database does. The steps here are libpq's own for a program that does not wait:
https://www.postgresql.org/docs/current/libpq-async.html and libpq-copy.html
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from loader.postgres.connection import cut
from loader.raw.batches import LandingStatement

_BINARY = 1

_Done = Callable[[Exception | None], None]


class AsyncConnection:
    """One statement at a time; for the event loop's thread.

    Args:
        connection: A connection in autocommit, so that each statement is a transaction of its own.
        loop: The event loop.
        seconds: How long the server may take for a statement.

    Attributes:
        is_busy: A statement is under way.
    """

    def __init__(self, connection: psycopg.Connection, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.is_busy = False
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._loop = loop
        self._seconds = seconds
        # Looked at from the beginning: a connection may end while nothing is asked of it.
        self._socket = self._pgconn.socket if self.is_whole() else -1
        if self._socket >= 0:
            loop.add_reader(self._socket, self._read)
        self._is_writing = False
        self._deadline = float("inf")
        self._copied = b""
        self._error: Exception | None = None
        self._done: _Done = lambda _: None

    def execute(self, statement: LandingStatement, done: _Done) -> None:
        """Run a statement, without preparing it.

        Behind a pooler, a server's session may have lost a prepared statement, or have the one of another process.

        Args:
            statement: The statement.
            done: Called when the statement is committed, or with the error; then it is not committed, or nobody knows.
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
            # Not at once: nobody expects to be told before this returns.
            self._loop.call_soon(self._end, error)
            return
        self._flush()

    def is_late(self) -> bool:
        """Say whether the server has taken too long."""
        return time.monotonic() > self._deadline

    def is_whole(self) -> bool:
        """Say whether the connection can be used, now or when the statement under way is done."""
        return self._pgconn.status == ConnStatus.OK

    def notice(self) -> None:
        """Read what has come without having been told that something has.

        A connection that is reset behind the server's last words is one event to libuv, which then looks at the socket
        no more: those words are read, and nobody learns of the end (`uv__poll_io` in its src/unix/poll.c).
        """
        if self._socket >= 0:
            self._read()

    def cut(self) -> None:
        """End a connection whose server takes too long: what is under way fails."""
        self._deadline = float("inf")
        cut(self._connection)

    def close(self) -> None:
        """Close the connection; what is under way fails."""
        self._let_go()
        if self.is_busy:
            self._end(psycopg.OperationalError("closed"))
        with suppress(psycopg.Error):
            self._connection.close()

    def _flush(self) -> None:
        """Send what libpq holds; what the socket does not take now is sent when it does."""
        try:
            if self._pgconn.flush():
                self._loop.add_writer(self._socket, self._flush)
                self._is_writing = True
            elif self._is_writing:
                self._loop.remove_writer(self._socket)
                self._is_writing = False
        except psycopg.Error as error:
            self._end(error)

    def _read(self) -> None:
        """Go on with what the server has answered."""
        try:
            self._pgconn.consume_input()
            if not self.is_busy:
                # A notice, or the end of the connection, which the next statement will find out.
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
        """Look at the socket no longer, before it is closed."""
        if self._socket >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket = -1


def _failure(result: PGresult) -> psycopg.Error:
    return psycopg.DatabaseError(result.error_message.decode(errors="replace"))
