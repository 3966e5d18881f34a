"""Deliveries that wait to be durable: never more bytes of them than the process may hold, each answered once."""

from collections import deque
from collections.abc import Callable, Iterable

import structlog

from loader.errors import UnavailableError
from loader.events.model import Delivery
from loader.runtime import metrics

# Called when a delivery is durable, or with why it could not be made so.
Done = Callable[[UnavailableError | None], None]

# A delivery, its bytes, and who is to be told.
Waiting = tuple[Delivery, int, Done]

log = structlog.get_logger("loader")


class Backlog:
    """What was submitted and is not taken yet; for the event loop's thread.

    Args:
        limit: Bytes that may wait, those that are taken and not answered included.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Waiting] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        """Return how many deliveries wait to be taken."""
        return len(self._waiting)

    def add(self, delivery: Delivery, done: Done) -> None:
        """Have a delivery wait.

        Raises:
            UnavailableError: Too much is waiting already.
        """
        size = delivery.size
        if self._bytes + size > self._limit and self._bytes:
            raise UnavailableError("The collector has more waiting than it may hold. Try again in a moment.")
        self._bytes += size
        self._waiting.append((delivery, size, done))

    def take(self, limit: int) -> list[Waiting]:
        """Take those that came first: so many that they have `limit` bytes, or all."""
        batch = []
        size = 0
        while self._waiting and size < limit:
            batch.append(self._waiting.popleft())
            size += batch[-1][1]
        metrics.queue_bytes.set(self._bytes)
        return batch

    def answer(self, batch: Iterable[Waiting], error: UnavailableError | None) -> None:
        """Tell everybody of a batch what became of it."""
        for _, size, done in batch:
            self._bytes -= size
            try:
                done(error)
            except Exception:  # a mistake of ours with one must not leave the others without their answers
                log.exception("a request could not be answered")
        metrics.queue_bytes.set(self._bytes)
