"""The process that stops the embedded PostgreSQL when nothing uses it.

Commands come and go and may be killed, so none of them can be the one that stops the server: a process of its own,
started along with the server, watches for both kinds of users. Commands hold a lock on `users.lock`; everything else,
such as a BI tool, has a session in the server. `loader.postgres.embedded` starts it and hands it the lock that makes
it the only one.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from loader.errors import EmbeddedError
from loader.postgres.embedded import EmbeddedServer

DEFAULT_IDLE = 600.0  # should the file that says it be deleted
# A tool may open a session per query, and be gone whenever we look: the sum of sessions shows that it was there.
SESSIONS = """
    select (select count(*) from pg_stat_activity
            where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()),
           (select sum(sessions) from pg_stat_database)
"""


class Keeper:
    """Watches one server until it has stopped.

    Args:
        server: The server.
        lock: Descriptor of the locked `keeper.lock`.
    """

    def __init__(self, server: EmbeddedServer, lock: int) -> None:
        self._server = server
        self._lock = lock
        self._used = time.monotonic()
        self._sessions = 0
        self._connection: psycopg.Connection[Any] | None = None

    def watch(self) -> None:
        """Stop the server when nothing has used it for long enough; return when it does not run any more."""
        pause = 0.1
        while True:
            time.sleep(pause)  # of a client that leaves, or a lock that is let go, nobody is told
            try:
                idle = float(self._server.folder.read("idle") or DEFAULT_IDLE)
                pause = min(max(idle / 4, 0.1), 5.0)
                if self._is_over():
                    return
                if self._has_sessions():
                    self._used = time.monotonic()
                elif time.monotonic() - self._used >= idle and self._stop():
                    return
            except FileNotFoundError:
                return  # somebody deleted the folder; PostgreSQL notices that, too, and ends itself
            except (EmbeddedError, OSError, ValueError, psycopg.Error):
                # A command uses the server, or starts or stops it, or the server is too busy to tell.
                self._used = time.monotonic()

    def _is_over(self) -> bool:
        """Tell whether the server has ended, and if so give up the lock before a command can start another.

        Raises:
            EmbeddedError: A command uses the server, or is starting or stopping it.
        """
        with self._server.folder.hold("start.lock", wait=0):
            if not self._server.is_running() or not self._is_the_one():
                os.close(self._lock)
                return True
            with self._server.folder.hold("users.lock", wait=0):
                return False

    def _is_the_one(self) -> bool:
        """Tell whether the lock is still the one others look at: the folder may have been deleted and made anew."""
        return os.path.samestat(os.fstat(self._lock), (self._server.folder.path / "keeper.lock").stat())

    def _has_sessions(self) -> bool:
        """Tell whether anybody is connected, or has been since the last call."""
        try:
            if self._connection is None:
                self._connection = self._server.connect("postgres", as_keeper=True)
            row = self._connection.execute(SESSIONS).fetchone()
        except psycopg.Error:
            self._connection = None
            raise
        clients, sessions = row or (0, 0)
        before, self._sessions = self._sessions, sessions
        return bool(clients) or sessions != before

    def _stop(self) -> bool:
        """Stop the server unless somebody has come since; no command can come while the locks are held."""
        with self._server.folder.hold("start.lock", wait=0), self._server.folder.hold("users.lock", wait=0):
            if self._has_sessions():
                return False
            if self._connection:
                self._connection.close()
                self._connection = None
            sys.stderr.write("keeper: nothing uses the server any more: stopping it\n")  # in its log
            self._server.shut_down()
            os.close(self._lock)
            return True


def main(home: str, lock: str) -> None:
    """Watch the server of a home until it has stopped; `loader.postgres.embedded` starts this process.

    Args:
        home: The `LOADER_HOME`.
        lock: The descriptor of the locked `keeper.lock`, which this process has inherited.
    """
    os.set_inheritable(int(lock), False)
    with suppress(KeyboardInterrupt):
        Keeper(EmbeddedServer(Path(home)), int(lock)).watch()
