"""The queue of deliveries that are not durable yet: bounds their bytes, and answers each delivery once."""

from collections import deque
from collections.abc import Callable, Iterable

import structlog

from loader.errors import UnavailableError
from loader.events.model import Delivery
from loader.runtime import metrics

# Called with None when a delivery is durable, or with the error that prevented it.
Done = Callable[[UnavailableError | None], None]

# A delivery, its bytes, and the callback for its answer.
Waiting = tuple[Delivery, int, Done]

# Smallest number of deliveries in a full batch. The fixed cost of a commit is small against that of so many rows.
_FULL = 24

log = structlog.get_logger("loader")


class Backlog:
    """The deliveries without an answer, waiting or under way; call its methods from the thread of the event loop.

    Args:
        limit: Bytes that may wait. Deliveries that are in a batch without an answer count too.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Waiting] = deque()
        self._bytes = 0
        self._unanswered = 0

    def __len__(self) -> int:
        """Return the number of deliveries that wait for a batch."""
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        """Number of deliveries in batches without an answer."""
        return self._unanswered - len(self._waiting)

    @property
    def full(self) -> int:
        """Number of deliveries in a full batch: half of the deliveries without an answer, but at least 24.

        The other half can then arrive, or be answered, while the database works on this batch.
        """
        return max(_FULL, self._unanswered // 2)

    def add(self, delivery: Delivery, done: Done) -> bool:
        """Add a delivery to the queue, and return whether a full batch waits.

        Raises:
            UnavailableError: Too many bytes are waiting. While nothing waits, a delivery of any size is accepted.
        """
        size = delivery.size
        if self._bytes + size > self._limit and self._bytes:
            raise UnavailableError("The collector's queue is full. Try again in a moment.")
        self._bytes += size
        self._unanswered += 1
        self._waiting.append((delivery, size, done))
        return len(self._waiting) >= self.full

    def take(self, limit: int, number: int | None = None) -> list[Waiting]:
        """Remove the oldest deliveries as a batch: `number` deliveries at most, or those of the first `limit` bytes."""
        batch: list[Waiting] = []
        size = 0
        while self._waiting and size < limit and len(batch) != number:
            batch.append(self._waiting.popleft())
            size += batch[-1][1]
        metrics.queue_bytes.set(self._bytes)
        return batch

    def answer(self, batch: Iterable[Waiting], error: UnavailableError | None) -> None:
        """Answer all deliveries of a batch: durable if the error is None."""
        for _, size, done in batch:
            self._bytes -= size
            self._unanswered -= 1
            try:
                done(error)
            except Exception:  # a bug in one callback must not leave other requests without answers
                log.exception("a request could not be answered")
        metrics.queue_bytes.set(self._bytes)
