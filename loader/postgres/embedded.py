"""Starts, shares and stops the embedded PostgreSQL: a local server for a warehouse without a database server.

The embedded PostgreSQL is an ordinary server under `LOADER_HOME`. Several commands share it, and a BI tool connects to
it over TCP with a password. `loader.postgres.embedded_keeper` stops the server when nothing uses it; the data stays.

    LOADER_HOME/embedded/
        data/                the cluster; named `data.new` until it is complete
        password, port       kept, so that a connection set up in a BI tool keeps working
        keeper_password      password of the superuser; only the keeper connects with it
        idle                 seconds without a user until the keeper stops the server; set by the last command
        postgres.log         messages of the server and of the keeper
        start.lock           held by a process that starts or stops the server, or registers as its user
        users.lock           shared by all processes that use the server, for as long as they use it
        server.lock          inherited by every process of the server; free when no such process is left
        keeper.lock          held by the keeper
        postgresql-18.x/     a copy of the programs, if the server's user cannot enter the package's folder
"""

import logging
import os
import signal
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg

from loader.errors import EmbeddedError
from loader.postgres.embedded_cluster import DATABASE, ENVIRONMENT, KEEPER, USER, Cluster, end_keeper, start_detached
from loader.postgres.file_locks import POLL_SECONDS, TELL_SECONDS, LockedFolder
from loader.runtime.child_process import python_command

logger = logging.getLogger("loader")

ADDRESS = "127.0.0.1"
LOCKS = ("start.lock", "users.lock", "server.lock", "keeper.lock")
LOG_NAME = "postgres.log"
ASK_SECONDS = 0.25
LOG_LIMIT = 16 * 1024 * 1024

# Set at every start, because this module depends on them. English messages tell a starting server from a refusal.
SETTINGS = {
    "lc_messages": "C",
    "listen_addresses": ADDRESS,
    "log_destination": "stderr",
    "logging_collector": "off",
    "unix_socket_directories": "",
}


class EmbeddedServer:
    """The PostgreSQL server of one `LOADER_HOME`.

    Args:
        home: The `LOADER_HOME`.
        port: TCP port to listen on; 0 picks a free port and keeps it.
        idle: Seconds without a user until the server stops.
    """

    answer_seconds = 20.0  # a server that has not answered for this long counts as stuck
    recovery_seconds = 300.0  # limit for a start that replays the log after a crash
    stop_seconds = 120.0  # limit for a stop, which writes a checkpoint
    leftover_seconds = 30.0  # limit for the end of processes whose main process was killed
    lock_seconds = 330.0  # longer than each limit above, since the holder of a lock may wait for any of them

    def __init__(self, home: Path, *, port: int = 0, idle: float = 600.0) -> None:
        self.home = home.expanduser().resolve()
        self.folder = LockedFolder(self.home / "embedded", LOCKS)
        self._cluster = Cluster(self.folder)
        self._port = port
        self._idle = idle
        self._users: int | None = None

    def acquire(self) -> str:
        """Start the server unless it runs, and register this process as its user.

        Returns:
            The URL of the database, with the password.

        Raises:
            EmbeddedError: The server cannot be started, or does not answer.
        """
        with self.folder.explained():
            self.folder.create()
            with self.folder.hold("start.lock", wait=self.lock_seconds):
                new = None
                if self._users is None:
                    new = self._users = self.folder.lock("users.lock", wait=self.lock_seconds, shared=True)
                try:
                    if self.folder.read("idle") != str(self._idle):
                        self.folder.write("idle", str(self._idle))
                    if not self.folder.read("keeper_password"):
                        end_keeper(self.home)
                    # The keeper starts first, so that a server has a keeper even if this process is killed.
                    self._start_keeper()
                    port = self._start_or_join()
                except BaseException:
                    if new is not None:
                        self.release()
                    raise
            return f"postgresql://{USER}:{quote(self.folder.read('password'), safe='')}@{ADDRESS}:{port}/{DATABASE}"

    def release(self) -> None:
        """End the registration of this process as a user; the end of the process has the same effect."""
        if self._users is not None:
            # The descriptor is closed and not unlocked: a forked process may still use the server.
            os.close(self._users)
            self._users = None

    def stop(self) -> None:
        """Stop the server now, even if processes use it.

        Raises:
            EmbeddedError: The server does not stop, or belongs to another user.
        """
        if (self.folder.path / "start.lock").exists():
            with self.folder.explained(), self.folder.hold("start.lock", wait=self.lock_seconds):
                self.shut_down()

    def is_running(self) -> bool:
        """Return whether the server's main process is alive."""
        with self.folder.explained():
            return self._find_postmaster() is not None

    def shut_down(self) -> None:
        """Stop the server if it runs; the caller holds `start.lock`.

        Raises:
            EmbeddedError: The server does not stop in time.
        """
        found = self._find_postmaster()
        if found is None:
            return
        pid = found[0].pid
        with suppress(ProcessLookupError):
            # https://www.postgresql.org/docs/18/server-shutdown.html: fast shutdown, which ends all sessions.
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGCONT)  # a suspended process receives no other signal
        deadline = time.monotonic() + self.stop_seconds
        while self._find_postmaster() is not None:
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"The embedded PostgreSQL (process {pid}) has not stopped in {self.stop_seconds:.0f} s; the "
                    f"reason may be in {self.folder.path / LOG_NAME}. The server may still be writing to a slow disk: "
                    f"wait, or end it with `kill -9 {pid}`. Committed data survives that."
                )
            time.sleep(POLL_SECONDS)  # a process can wait only for the end of its own children

    def connect(self, database: str, *, as_keeper: bool = False) -> psycopg.Connection[Any]:
        """Connect to the running server, regardless of libpq's environment variables.

        Args:
            database: The database to connect to.
            as_keeper: Connect as the superuser.

        Raises:
            psycopg.OperationalError: The server refuses, or does not answer for 2 seconds.
        """
        found = self._find_postmaster()
        return psycopg.connect(
            host=ADDRESS,
            hostaddr=ADDRESS,
            port=found[1] if found else 0,
            user=KEEPER if as_keeper else USER,
            password=self.folder.read("keeper_password" if as_keeper else "password"),
            dbname=database,
            application_name="loader keeper",
            autocommit=True,
            connect_timeout=2,
            gssencmode="disable",
            options="-c statement_timeout=5s",
            sslmode="disable",
        )

    def _find_postmaster(self) -> tuple[psutil.Process, int] | None:
        """Return the server's main process and its port; None if the process of the pid file is not the server."""
        try:
            lines = (self._cluster.data / "postmaster.pid").read_text().splitlines()
            postmaster, port = psutil.Process(int(lines[0])), int(lines[3])
            command = postmaster.cmdline()
            if not command or Path(command[0]).name != "postgres":
                return None
            # Every user may read a command line. The working folder recognises a server that was started by hand.
            is_ours = str(self._cluster.data) in command or self._works_here(postmaster)
        except (FileNotFoundError, IndexError, ValueError, psutil.Error):
            return None
        return (postmaster, port) if is_ours else None

    def _has_programs(self) -> bool:
        """Return whether the programs of the running server are still on disk.

        A server without its programs answers, but new sessions cannot load a language or an extension. The programs
        are in the environment of the command that started the server, and people delete environments.
        """
        with suppress(psutil.Error, PermissionError):
            if found := self._find_postmaster():
                program = Path(found[0].cmdline()[0])
                return program.exists() or not program.is_absolute()
        return True

    def _works_here(self, process: psutil.Process) -> bool:
        try:
            return Path(process.cwd()) == self._cluster.data
        except psutil.Error:
            return False

    def _start_keeper(self) -> None:
        """Start the process that stops an unused server, unless it runs already."""
        if not self.folder.is_free("keeper.lock"):
            return
        with self.folder.hold("keeper.lock", wait=self.lock_seconds) as lock, self._open_log() as log:
            command = python_command("loader.postgres.embedded_keeper", str(self.home), str(lock))
            start_detached(command, account=None, log=log, lock=lock, environment=dict(os.environ))

    def _start_or_join(self) -> int:
        """Return the port of the running server; start the server first if it does not run."""
        logged = None
        for _ in range(3):  # a start fails if somebody ends the server, or if another program takes its port
            passwords = self.folder.read("password") and self.folder.read("keeper_password")
            if self._find_postmaster() is None or not passwords or not self._has_programs():
                logged = self._start()
            began = time.monotonic()
            port = self._await_answer()
            if port is not None:
                if self._port not in {0, port}:
                    logger.warning("the embedded PostgreSQL already runs on port %d, not on %d", port, self._port)
                return port
            if logged is not None and time.monotonic() - began > self.answer_seconds:
                break  # after a long recovery, another try would take as long
        raise EmbeddedError(
            "The embedded PostgreSQL does not start. Fix the problem that its log names and run this again, or set "
            f"DATABASE_URL to a PostgreSQL of yours. {self._quote_log(logged or 0)}"
        )

    def _start(self) -> int:
        """Start the server and return the position in the log where its messages begin."""
        self.shut_down()  # a running server lacks a password file: `prepare` sets passwords without a server
        with self._hold_server_lock() as lock:
            programs, account = self._cluster.prepare(lock)
            # server.lock was free, so no process of a server is left. A live process of this number is another program.
            self._cluster.report_copy()
            (self._cluster.data / "postmaster.pid").unlink(missing_ok=True)
            settings = SETTINGS | {"port": str(self._choose_port())}
            options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            path = self.folder.path / LOG_NAME
            if path.exists() and path.stat().st_size > LOG_LIMIT:
                path.replace(path.with_suffix(".log.1"))
            with self._open_log() as log:
                begin = os.fstat(log).st_size
                command = [str(programs / "postgres"), "-D", str(self._cluster.data), *options]
                start_detached(command, account=account, log=log, lock=lock, environment=ENVIRONMENT)
            return begin

    @contextmanager
    def _hold_server_lock(self) -> Iterator[int]:
        """Wait until all processes of an earlier server are gone, and hold the lock that a new server inherits."""
        try:
            lock = self.folder.lock("server.lock", wait=self.leftover_seconds / 10)
        except EmbeddedError:
            # A session that runs a query does not notice that the main process was killed.
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.name() == "postgres" and self._works_here(process):
                        process.terminate()
            try:
                lock = self.folder.lock("server.lock", wait=self.leftover_seconds)
            except EmbeddedError:
                raise EmbeddedError(
                    f"Processes of an earlier server still use {self._cluster.data}. A second server would destroy the "
                    f"data. `fuser -v {self.folder.path / 'server.lock'}` shows the processes: end them. If fuser "
                    "shows none, the processes run in another container with the same folder. In both "
                    "containers, set DATABASE_URL to the same PostgreSQL."
                ) from None
        try:
            yield lock
        finally:
            os.close(lock)

    def _await_answer(self) -> int | None:
        """Wait until the server answers, and return its port; None when the server has ended.

        Raises:
            EmbeddedError: The server refuses its user, does not answer, or takes too long to recover.
        """
        started = heard = asked = time.monotonic()
        is_told = False
        while True:
            found = self._find_postmaster()
            if found is None:
                if time.monotonic() - heard > self.answer_seconds or self.folder.is_free("server.lock"):
                    return None
            # Each connection to a starting server writes a line to its log.
            elif self._is_announced() or time.monotonic() - asked > ASK_SECONDS:
                state = self._ask()
                asked = time.monotonic()
                if state == "ready":
                    return found[1]
                if state == "superuser":
                    # An older cluster lies in the place of a newer one. The next start separates its roles.
                    (self.folder.path / "keeper_password").unlink(missing_ok=True)
                    return None
                if state == "starting":
                    heard = asked
                    if heard - started > TELL_SECONDS and not is_told:
                        logger.warning("the embedded PostgreSQL recovers from a crash, which can take minutes")
                        is_told = True
                    time.sleep(ASK_SECONDS)  # the end of a recovery shows only in the next connection
            now = time.monotonic()
            if now - started > self.recovery_seconds:
                raise EmbeddedError(
                    f"The embedded PostgreSQL is still starting after {now - started:.0f} s. The start continues in "
                    f"the background: run this again later. {self._quote_log(0)}"
                )
            if found and now - heard > self.answer_seconds:
                pid = found[0].pid
                raise EmbeddedError(
                    f"The embedded PostgreSQL (process {pid}) has not answered on {ADDRESS} for {now - heard:.0f} s. "
                    f"The process may be suspended (`kill -CONT {pid}` resumes it), or the machine is overloaded. End "
                    f"the process with `kill -9 {pid}`, then run this again: committed data survives that."
                )
            time.sleep(POLL_SECONDS)  # nothing reports a change of the pid file

    def _ask(self) -> str:
        """Return the state of the server: `ready`, `starting` or `silent`, or `superuser` if its role is one."""
        try:
            with self.connect(DATABASE) as connection:
                if connection.info.parameter_status("is_superuser") == "on":
                    return "superuser"
        except psycopg.OperationalError as error:
            message = str(error)
            if "FATAL:" not in message:
                return "silent"
            if "the database system is" in message:  # … starting up, in recovery mode, shutting down
                return "starting"
            if "terminating connection" in message or not self._find_postmaster() or not self._is_announced():
                return "silent"  # the server is ending, or another program answers on the port it needs
            if "too many clients" not in message:
                raise EmbeddedError(
                    f"The embedded PostgreSQL refuses its own user: {message.splitlines()[-1]}. If the password was "
                    f"changed, delete {self.folder.path / 'password'} and run this again to set a new password."
                ) from error
        return "ready"

    def _is_announced(self) -> bool:
        """Return whether the server's pid file reports that it takes connections."""
        return self.folder.read("data/postmaster.pid").endswith("ready")

    def _choose_port(self) -> int:
        """Return a free port and remember it: the requested port, else the remembered port, else another."""
        remembered = self.folder.read("port")
        known = int(remembered) if remembered.isdecimal() else 0
        port = self._port or known
        if self._port and not _is_free(self._port):
            raise EmbeddedError(
                f"Port {self._port} of {ADDRESS} is in use by another program, so the embedded PostgreSQL cannot "
                "listen there. End that program, or set LOADER_EMBEDDED_PORT to another port, or to 0 for a free port."
            )
        if not port or not _is_free(port):
            # These ports lie below those of outgoing connections. A folder gets the same port whenever it is free.
            first = zlib.crc32(bytes(self.folder.path))
            port = next(filter(_is_free, (20_000 + (first + step) % 10_000 for step in range(10_000))))
            if known:
                logger.warning(
                    "port %d of the embedded PostgreSQL is in use by another program: the server listens on port %d "
                    "from now on; change the port in BI tools that connect to it",
                    known,
                    port,
                )
        if port != known:
            self.folder.write("port", str(port))
        return port

    @contextmanager
    def _open_log(self) -> Iterator[int]:
        descriptor = self.folder.open(LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _quote_log(self, start: int) -> str:
        """Return the last lines of the log, from a position on."""
        path = self.folder.path / LOG_NAME
        with path.open("rb") as log:
            log.seek(max(start, path.stat().st_size - 4_000))
            lines = log.read().decode(errors="replace").splitlines()[-10:]
        return f"The end of {path}:\n" + "\n".join(lines)


def _is_free(port: int) -> bool:
    """Return whether a server could listen on a port now."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError:
            return False
    return True
