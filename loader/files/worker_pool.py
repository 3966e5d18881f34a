"""Runs worker processes that parse and copy chunks of a file in parallel, and commit them in the file's order.

One connection uses one core of the server, and parsing for it uses half a core of this machine. One worker would leave
most machines idle. Chunks are copied at the same time, but each chunk commits after the chunk before it, together with
the file's new offset. After a kill at any point, everything before that offset has landed and nothing after it.
"""

from collections import deque

from loader.errors import LoaderError
from loader.files.worker import Work
from loader.raw.landing import LandingResult
from loader.runtime.child_process import ChildProcess


class Workers:
    """A pool of worker processes, each with its own connection.

    Args:
        url: The database's connection URL.
        count: The number of workers.
        lock_wait: Seconds that a statement waits for a lock of another session.

    Raises:
        LoaderError: The system cannot start that many processes.
    """

    def __init__(self, url: str, count: int, lock_wait: float) -> None:
        self._workers: list[ChildProcess] = []
        for _ in range(count):
            try:
                self._workers.append(ChildProcess("loader.files.worker", (url, lock_wait)))
            except OSError as error:
                self.close()
                raise LoaderError(
                    f"Cannot start {count} worker processes: {error.strerror}. Set LOADER_WORKERS to a smaller number."
                ) from None
        self._idle = deque(self._workers)
        self._busy: deque[ChildProcess] = deque()

    def submit(self, work: Work) -> LandingResult | None:
        """Give a chunk to a worker; if all workers are busy, first wait for the oldest chunk's commit.

        Args:
            work: The chunk.

        Returns:
            The result of the chunk that was committed meanwhile; None if no chunk was.

        Raises:
            LoaderError: The oldest chunk could not be landed, or a worker process died.
        """
        committed = None if self._idle else self.commit_oldest()
        worker = self._idle.popleft()
        try:
            worker.pipe.send(work)
        except OSError:
            # The worker may have sent its reason before it ended.
            _receive(worker)
            raise _died() from None
        self._busy.append(worker)
        return committed

    def commit_oldest(self) -> LandingResult | None:
        """Let the oldest chunk commit, and wait for its commit.

        Returns:
            The result of the chunk; None if no worker has a chunk.

        Raises:
            LoaderError: The chunk could not be landed, or its worker process died.
        """
        if not self._busy:
            return None
        worker = self._busy.popleft()
        _receive(worker)
        try:
            worker.pipe.send("commit")
        except OSError:
            raise _died() from None
        landed = _receive(worker)
        self._idle.append(worker)
        return landed

    def close(self) -> None:
        """Kill the workers; the server rolls back chunks that are not committed."""
        for worker in self._workers:
            worker.close()


def _receive(worker: ChildProcess) -> LandingResult:
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError):
        raise _died() from None
    if isinstance(message, LoaderError):
        raise message
    if not isinstance(message, LandingResult):
        raise LoaderError(
            f"A worker process failed: {message}. Run the command again: it continues after the last commit."
        )
    return message


def _died() -> LoaderError:
    return LoaderError(
        "A worker process ended without a message, perhaps killed for lack of memory. Committed chunks are kept: run "
        "the command again to continue after them."
    )
