"""Worker processes that parse and copy chunks of a file side by side, and commit them in the file's order.

A connection keeps one core of the server busy and parsing half of one here, so one of each would leave most machines
idle. Chunks are copied at the same time, but each commits only after the one before it, together with the file's new
offset: whenever the loader is killed, everything before that offset has landed and nothing after it has.
"""

from collections import deque

from loader.errors import LoaderError
from loader.files.worker import Work
from loader.raw.landing import LandingResult
from loader.runtime.child_process import ChildProcess


class Workers:
    """A few worker processes, each with its own connection.

    Args:
        url: The database's connection URL.
        count: How many.
        lock_wait: Seconds a statement of theirs waits for a lock of somebody else.
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
        """Hand a chunk to a worker; when all are busy, wait for the oldest chunk to be committed first.

        Returns:
            What became of the chunk that was committed meanwhile, if one was.

        Raises:
            LoaderError: That chunk could not be landed.
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
        """Wait for the oldest chunk to be committed.

        Returns:
            What became of it; None when no chunk is under way.

        Raises:
            LoaderError: It could not be landed.
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
        """Stop the workers; chunks not committed are rolled back."""
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
        raise LoaderError(f"A worker process failed: {message}. Run the command again: it goes on from there.")
    return message


def _died() -> LoaderError:
    return LoaderError(
        "A worker process ended without a word, perhaps killed for lack of memory. Everything committed is kept; run "
        "the command again and it goes on from there."
    )
