"""A load of requests whose answers are kept, and checks of the events with a 200."""

import http.client
import json
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from tests.support.waiting import wait_until

SENDERS = 4
# Without a pause, the senders would take a small machine from the processes that the tests wait for.
PAUSE_SECONDS = 0.01

# The number of events of a batch; between two batches one event is sent alone.
BATCH = 5


def track(message_id: str, **properties: object) -> dict[str, object]:
    """Return a call for the tracking API."""
    return {"type": "track", "event": "Email Opened", "userId": "u", "messageId": message_id, "properties": properties}


class Load:
    """Senders that each send one request after the other with short pauses, after any answer.

    Attributes:
        accepted: The ids of the events answered with 200, by sender, in their order.
        statuses: The number of answers of each status; 0 stands for no answer.
    """

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._headers = {
            "Authorization": "Basic " + b64encode(f"{key}:".encode()).decode(),
            "Content-Type": "application/json",
        }
        self._stopping = threading.Event()
        self.accepted: list[list[str]] = [[] for _ in range(SENDERS)]
        self.sent: set[str] = set()
        self.statuses: Counter[int] = Counter()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    @property
    def ids(self) -> set[str]:
        """Return the ids of all events answered with 200."""
        return {each for accepted in self.accepted for each in accepted}

    def wait_for(self, more: int, status: int = 200) -> None:
        """Wait until so many further requests have been answered with a status."""
        enough = self.statuses[status] + more
        wait_until(lambda: self.statuses[status] >= enough, f"{more} answers with {status}, of {self.statuses}")

    def stop(self) -> None:
        """Send no further request, and wait for the answers to the sent requests."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        count = 0
        while not self._stopping.is_set():
            ids = [f"{number}-{count + each}" for each in range(1 if count % (BATCH + 1) else BATCH)]
            count += len(ids)
            calls = [track(each, campaignId=number) for each in ids]
            path, body = ("/v1/batch", {"batch": calls}) if len(calls) > 1 else ("/v1/track", calls[0])
            self.sent.update(ids)
            status = 0
            try:
                connection.request("POST", path, json.dumps(body), self._headers)
                response = connection.getresponse()
                status = response.status
                response.read()
            except (OSError, http.client.HTTPException):
                with suppress(OSError):
                    connection.close()
            if status == 200:
                self.accepted[number] += ids
            self.statuses[status] += 1
            self._stopping.wait(PAUSE_SECONDS)
        connection.close()


@contextmanager
def load(port: int, key: str) -> Iterator[Load]:
    """Send requests until the end of the block, at the latest."""
    running = Load(port, key)
    try:
        yield running
    finally:
        running.stop()


def landed(connection: psycopg.Connection) -> dict[str, int]:
    """Return every id in raw.events, with the place of the first event of that id."""
    return dict(connection.execute("select message_id, min(seq) from raw.events group by message_id").fetchall())


def assert_landed(connection: psycopg.Connection, sent: Load) -> None:
    """Check that every event with a 200 has landed, in the order of its sender, and that no unsent event has landed."""
    places = landed(connection)
    assert sent.ids - places.keys() == set()
    assert places.keys() - sent.sent == set()
    for accepted in sent.accepted:
        seen = [places[each] for each in accepted]
        assert seen == sorted(seen)


def wait_until_replayed(connection: psycopg.Connection, sent: Load) -> None:
    """Wait until every event answered with 200 is in raw.events."""
    wait_until(lambda: sent.ids <= landed(connection).keys(), "the spooled events to land")
