"""The queue of the writing thread's tasks: tasks that gather while the thread is busy share a commit."""

from dataclasses import dataclass
from queue import SimpleQueue

from loader.buffer.backlog import Waiting
from loader.buffer.spool_replay import BATCH_BYTES


@dataclass
class Task:
    """A batch for the writing thread.

    Attributes:
        batch: Deliveries to write.
        number: The number of queued tasks that this task combines.
        late: Whether the database has left a connection with this batch without an answer in time.
    """

    batch: list[Waiting]
    number: int = 1
    late: bool = False


class Tasks:
    """The tasks that wait for the writing thread; any thread may use them."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Task | None] = SimpleQueue()

    def put(self, task: Task | None) -> None:
        """Add a task to the queue; None ends the writing thread after the tasks before it."""
        self._waiting.put(task)

    def next(self) -> Task | None:
        """Wait for a task, and combine it with the tasks behind it, so that they share a commit.

        Returns:
            The combined task; None when the thread is to end.
        """
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
