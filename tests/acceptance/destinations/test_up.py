"""`loader up` with a destination: from a call over HTTP to the receiver, by the tables of a real run."""

import json
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import open_database
from loader.settings import Settings
from tests.conftest import loader_here
from tests.support.collector_process import environment, free_port
from tests.support.dbt_runs import run
from tests.support.deliveries import conserved
from tests.support.receivers import Received, Receiver, Respond, receiving
from tests.support.waiting import wait_until


class Up:
    """A running `loader up`, and a sender of calls."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = b64encode(f"{key}:".encode()).decode()

    def send(self, *ids: str, kind: str = "track") -> None:
        """Send calls in one request."""
        calls = [{"type": kind, "event": "Email Opened", "userId": "u", "messageId": each} for each in ids]
        body, headers = json.dumps({"batch": calls}).encode(), {"Authorization": f"Basic {self._key}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self._port}/v1/batch", data=body, headers=headers)
        ) as answer:
            assert answer.status == 200


@contextmanager
def running_up(settings: Settings, log: Path) -> Iterator[Up]:
    """Run `loader up` until the end of the block."""
    key = loader_here(settings)("key", "add").stdout.strip()
    port = free_port()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "loader", "up", f"--port={port}", "--every=0.2s"],
            env=environment(settings, ()),
            stderr=stream,
        )
        try:
            wait_until(lambda: "collector is ready" in log.read_text(), "the collector")
            yield Up(port, key)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def add(settings: Settings, receiver: Receiver) -> None:
    """Add a destination."""
    done = loader_here(settings)("destination", "add", "ops", "--kind", "webhook", "--url", receiver.url)
    assert done.returncode == 0


@pytest.mark.heavy
def test_up_delivers_as_soon_as_there_is_a_destination(served_settings: Settings, tmp_path: Path) -> None:
    """The events are in the tables before they go. A rebuild of the tables sends nothing again."""
    with receiving() as receiver, running_up(served_settings, tmp_path / "up.log") as up:
        up.send("before")
        with psycopg.connect(served_settings.database_url, autocommit=True) as connection:
            wait_until(
                lambda: connection.execute("select id from iterable.tracks").fetchall() == [("before",)], "the run"
            )
            add(served_settings, receiver)
            up.send("a", "b")
            up.send("who", kind="identify")
            wait_until(lambda: set(receiver.taken_ids) == {"a", "b", "who"}, "the events")
    with open_database(served_settings) as database, database.connect(autocommit=True) as connection:
        run(database, served_settings, "tracks", "email_opened", full_refresh=True)
        loader_here(served_settings)("forward", "--once")
        assert conserved(connection, "ops") == {"delivered": 3, "filtered": 0, "repeated": 0, "dead": 0}
    assert sorted(receiver.taken_ids) == ["a", "b", "who"]


@pytest.mark.soak
def test_an_event_arrives_within_seconds_of_its_landing(
    served_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At ten events a second, the median is below ten seconds."""
    arrived: dict[str, float] = {}
    sent: dict[str, float] = {}

    def answer(request: Received) -> Respond:
        for each in request.ids:
            arrived.setdefault(each, time.monotonic())
        return Respond()

    with receiving() as receiver, running_up(served_settings, tmp_path / "up.log") as up:
        receiver.answer = answer
        add(served_settings, receiver)
        for number in range(600):
            up.send(f"m{number}")
            sent[f"m{number}"] = time.monotonic()
            time.sleep(0.1)  # the pace of the sender: the latency is that at ten events a second
        wait_until(lambda: len(arrived) == 600, "all events")
    median = statistics.median(arrived[each] - sent[each] for each in sent)
    with capsys.disabled():
        print(f"\nfrom the sender to the receiver: median {median:.2f} s")  # noqa: T201
    assert median < 10
