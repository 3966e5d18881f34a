"""What the writing thread has to do, one task after the other."""

from dataclasses import dataclass
from queue import SimpleQueue

from loader.buffer.backlog import Waiting
from loader.buffer.spool_replay import BATCH_BYTES


@dataclass
class Task:
    """What the writing thread has to do at a time.

    Attributes:
        batch: Deliveries to write.
        number: How many tasks it was made of.
        late: The database has not answered the connection that sent the batch.
    """

    batch: list[Waiting]
    number: int = 1
    late: bool = False


class Tasks:
    """The tasks that wait for the writing thread; may be used from any thread."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Task | None] = SimpleQueue()

    def put(self, task: Task | None) -> None:
        """Have a task wait; None ends the thread when it has done the others."""
        self._waiting.put(task)

    def next(self) -> Task | None:
        """Wait for something to do; what has gathered meanwhile shares a commit."""
        task = self._waiting.get()
        while task and not self._waiting.empty() and sum(size for _, size, _ in task.batch) < BATCH_BYTES:
            following = self._waiting.get()
            if following is None:
                self._waiting.put(None)
                break
            task.batch += following.batch
            task.number += 1
            task.late |= following.late
        return task
