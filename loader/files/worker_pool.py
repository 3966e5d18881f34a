"""Worker processes that parse and copy chunks of a file side by side, and commit them in the file's order.

A connection keeps one core of the server busy and parsing half of one here, so one of each would leave most machines
idle. Chunks are copied at the same time, but each commits only after the one before it, together with the file's new
offset: whenever the loader is killed, everything before that offset has landed and nothing after it has.
"""

import socket
import subprocess
import sys
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path

from loader.errors import LoaderError
from loader.files.worker import Work
from loader.raw.landing import LandingResult

# Starts a worker without importing the command line again, as multiprocessing would, and without looking for modules in
# the folder the person happens to be in.
_START = "import sys; sys.path.append(sys.argv[1]); from loader.files.worker import main; main(int(sys.argv[2]))"
_PACKAGES = str(Path(__file__).parents[2])

# Room for a chunk's worth of bytes in the pipe, so that handing over the next does not wait for the worker.
_PIPE_BYTES = 1 << 20


class Workers:
    """A few worker processes, each with its own connection.

    Args:
        url: The database's connection URL.
        count: How many.
        lock_wait: Seconds a statement of theirs waits for a lock of somebody else.
    """

    def __init__(self, url: str, count: int, lock_wait: float) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            try:
                self._start(url, lock_wait)
            except OSError as error:
                self.close()
                raise LoaderError(
                    f"Cannot start {count} worker processes: {error.strerror}. Set LOADER_WORKERS to a smaller number."
                ) from None
        self._idle = deque(self._pipes)
        self._busy: deque[Connection] = deque()

    def _start(self, url: str, lock_wait: float) -> None:
        here, there = socket.socketpair()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
        pipe = Connection(here.detach())
        self._pipes.append(pipe)
        with there:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, _PACKAGES, str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C is for the parent, which closes the pipe.
                process_group=0,
            )
        self._processes.append(process)
        pipe.send((url, lock_wait))

    def submit(self, work: Work) -> LandingResult | None:
        """Hand a chunk to a worker; when all are busy, wait for the oldest chunk to be committed first.

        Returns:
            What became of the chunk that was committed meanwhile, if one was.

        Raises:
            LoaderError: That chunk could not be landed.
        """
        committed = None if self._idle else self.commit_oldest()
        pipe = self._idle.popleft()
        try:
            pipe.send(work)
        except OSError:
            # It may have said why before it went.
            self._receive(pipe)
            raise _died() from None
        self._busy.append(pipe)
        return committed

    def commit_oldest(self) -> LandingResult | None:
        """Wait for the oldest chunk to be committed.

        Returns:
            What became of it; None when no chunk is under way.

        Raises:
            LoaderError: It could not be landed.
        """
        if not self._busy:
            return None
        pipe = self._busy.popleft()
        self._receive(pipe)
        try:
            pipe.send("commit")
        except OSError:
            raise _died() from None
        landed = self._receive(pipe)
        self._idle.append(pipe)
        return landed

    def close(self) -> None:
        """Stop the workers; chunks not committed are rolled back."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            # One that waits for the database, perhaps for a lock, would not notice that its pipe is closed.
            process.kill()
            process.wait()

    @staticmethod
    def _receive(pipe: Connection) -> LandingResult:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            raise _died() from None
        if isinstance(message, LoaderError):
            raise message
        if not isinstance(message, LandingResult):
            raise LoaderError(f"A worker process failed: {message}. Run the command again: it goes on from there.")
        return message


def _died() -> LoaderError:
    return LoaderError(
        "A worker process ended without a word, perhaps killed for lack of memory. Everything committed is kept; run "
        "the command again and it goes on from there."
    )
