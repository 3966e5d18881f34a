"""The keeper: a process that stops the embedded PostgreSQL when nothing uses it.

Commands are short and may be killed, so no command can stop the server. The keeper starts with the server and watches
two kinds of users. Commands hold a shared lock on `users.lock`. Other programs, such as BI tools, have sessions in the
server. `loader.postgres.embedded` starts the keeper and passes it `keeper.lock`, which only one keeper can hold.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psycopg

from loader.errors import EmbeddedError
from loader.postgres.embedded import EmbeddedServer
from loader.postgres.kept_connection import KeptConnection
from loader.postgres.statements import read_statement

DEFAULT_IDLE = 600.0  # if the file `idle` was deleted
ANSWER_SECONDS = 10.0
SESSIONS = read_statement(__file__, "sessions")


class Keeper:
    """Watches one server until the server has stopped.

    Args:
        server: The server.
        lock: Descriptor of the locked `keeper.lock`.
    """

    def __init__(self, server: EmbeddedServer, lock: int) -> None:
        self._server = server
        self._lock = lock
        self._used = time.monotonic()
        self._sessions = 0
        self._kept = KeptConnection(lambda: server.connect("postgres", as_keeper=True))

    def watch(self) -> None:
        """Stop the server after its idle time without users; return when the server does not run any more."""
        pause = 0.1
        while True:
            time.sleep(pause)  # nothing reports the end of a session or of a lock
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
                return  # the folder was deleted; PostgreSQL notices that too, and ends
            except (EmbeddedError, OSError, ValueError, psycopg.Error):
                # A command uses, starts or stops the server, or the server is too busy to answer.
                self._used = time.monotonic()

    def _is_over(self) -> bool:
        """Return whether the server has ended; if so, give up the keeper's lock before a command can start a server.

        Raises:
            EmbeddedError: A command uses the server, or is starting or stopping it.
        """
        with self._server.folder.hold("start.lock", wait=0):
            if not self._server.is_running() or not self._has_current_lock():
                os.close(self._lock)
                return True
            with self._server.folder.hold("users.lock", wait=0):
                return False

    def _has_current_lock(self) -> bool:
        """Return whether `keeper.lock` is still the file that this process holds.

        Somebody may have deleted the folder, and a command may have created it again.
        """
        return os.path.samestat(os.fstat(self._lock), (self._server.folder.path / "keeper.lock").stat())

    def _has_sessions(self) -> bool:
        """Return whether a client is connected, or was connected since the last call."""
        with self._kept.use(ANSWER_SECONDS) as connection:
            row = connection.execute(SESSIONS).fetchone()
        clients, sessions = row or (0, 0)
        before, self._sessions = self._sessions, sessions
        return bool(clients) or sessions != before

    def _stop(self) -> bool:
        """Stop the server unless a client has connected since; return whether the server was stopped.

        No command can start to use the server while this function holds the locks.
        """
        with self._server.folder.hold("start.lock", wait=0), self._server.folder.hold("users.lock", wait=0):
            if self._has_sessions():
                return False
            self._kept.close()
            # stderr is the server's log.
            sys.stderr.write("keeper: nothing uses the server any more; stopping the server\n")
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
