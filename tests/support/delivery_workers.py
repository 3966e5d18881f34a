"""Workers of deliveries for tests, in a thread, or in a process that is killed."""

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from loader.destinations.worker import Worker
from loader.settings import Settings
from tests.support.collector_process import environment
from tests.support.receivers import LOST, Receiver, Respond
from tests.support.tcp_proxy import Proxy
from tests.support.waiting import wait_until

# As a restart of the server does.
END_CONNECTIONS = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
_DONE = "select coalesce(sum(delivered + filtered + repeated + dead), 0) from raw.delivery_cursors"
_LANDED = "select count(*) from raw.events"


@contextmanager
def working(settings: Settings, *names: str) -> Iterator[threading.Event]:
    """Run a worker in a thread until the end of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=Worker(settings, names).run, args=(stop,))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def start_worker(settings: Settings, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `loader forward` as a process."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "loader", "forward", *arguments], env=environment(settings, ()), stderr=stream
        )


class Disturbance:
    """Rounds in which workers are killed, connections are cut, and answers are lost or refused, all at random.

    Args:
        settings: The settings of the workers.
        receiver: The receiver of the only destination.
        proxy: A proxy in front of the database.
        log: The file of the workers' log.
        seed: The seed of all chances.
        answers: Answers in place of the receiver's own. A quarter of the answers are such answers.

    Attributes:
        repeats: Number of kills, lost connections and lost answers. Each may repeat one batch.
    """

    def __init__(
        self,
        settings: Settings,
        receiver: Receiver,
        proxy: Proxy,
        log: Path,
        *,
        seed: int,
        answers: Sequence[Respond],
    ) -> None:
        self._settings = settings.model_copy(update={"database_url": proxy.url})
        self._receiver = receiver
        self._proxy = proxy
        self._log = log
        self._chance = random.Random(seed)
        self._answers = answers
        self.repeats = 0

    def run(self, connection: psycopg.Connection, rounds: int, land: Callable[[], None]) -> None:
        """Disturb deliveries.

        Args:
            connection: A connection to the database.
            rounds: The number of rounds, each with the kill of one worker, or of two at once.
            land: Lands the events of a round.
        """
        for _ in range(rounds):
            land()
            workers = [start_worker(self._settings, self._log) for _ in range(self._chance.choice([1, 1, 1, 2]))]
            self._wait_for_requests(connection, self._chance.randint(1, 7))
            if self._chance.random() < 0.2:
                self._chance.choice([self._proxy.drop, lambda: connection.execute(END_CONNECTIONS)])()
                self.repeats += 1
                self._wait_for_requests(connection, 1)
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
                self.repeats += 1
            for worker in workers:
                worker.wait()

    def choose_answer(self) -> Respond | None:
        """Return an answer in place of the receiver's own; None if its own goes."""
        if self._chance.random() >= 0.25:
            return None
        answer = self._chance.choice(self._answers)
        self.repeats += answer is LOST
        return answer

    def _wait_for_requests(self, connection: psycopg.Connection, number: int) -> None:
        """Wait for further requests, or for the end of the delivery."""
        enough = len(self._receiver.requests) + number

        def is_done() -> bool:
            [[landed]], [[done]] = (connection.execute(query).fetchall() for query in (_LANDED, _DONE))
            return bool(landed == done)

        wait_until(lambda: len(self._receiver.requests) >= enough or is_done(), "requests to kill at")
