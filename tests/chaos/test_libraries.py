"""Segment's libraries send by their normal queues while the database goes and returns: no event is lost."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from segment.analytics import request as python_library
from segment.analytics.client import Client

from loader.postgres.database import Database
from loader.raw.sources import add_key
from loader.settings import Settings
from tests.support.collector_thread import Collecting, collecting
from tests.support.dbt_runs import run
from tests.support.served_tables import contents
from tests.support.tcp_proxy import Proxy, proxied
from tests.support.waiting import wait_until

EVENTS = 40

# The number of events before the database goes.
FIRST = 4

# Sends the first events, and the others on request. In the end it prints the events that it believes delivered.
NODE_PROGRAM = """
const { Analytics } = require('@segment/analytics-node')
const [host, writeKey, first, events] = process.argv.slice(1)
const analytics = new Analytics({ writeKey, host, flushAt: 4, flushInterval: 20, maxRetries: 30 })
const sent = []
analytics.on('error', (error) => console.error(error))
const send = (begin, end) => {
  for (let number = begin; number < end; number++) {
    const messageId = `library-${number}`
    analytics.track({ userId: 'u', event: 'Email Opened', messageId }, (error) => error || sent.push(messageId))
  }
}
send(0, Number(first))
process.stdin.once('data', async () => {
  send(Number(first), Number(events))
  await analytics.closeAndFlush({ timeout: 50000 })
  console.log(JSON.stringify(sent))
  process.exit()
})
"""


@dataclass(frozen=True)
class Scene:
    """A collector, a database with its tables, and the proxy between them."""

    collector: Collecting
    proxy: Proxy
    database: Database
    settings: Settings
    key: str
    met: str

    def break_down(self, go_on: Callable[[], None]) -> None:
        """Take the database away after an event has landed; bring it back after more events have come."""
        wait_until(self.landed, "the first event to land")
        self.proxy.stop()
        before = self.count()
        go_on()
        wait_until(lambda: self.count() > before, "the library to meet the outage")
        self.proxy.start()

    def count(self) -> float:
        """Return the number of events that took the collector's way of an outage."""
        lines = self.collector.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(self.met))

    def landed(self) -> set[str]:
        """Return the ids in raw.events."""
        with self.database.connect() as connection:
            return {each for (each,) in connection.execute("select message_id from raw.events")}

    def assert_in_table(self, sent: Iterable[str]) -> None:
        """Check that the table has each event once."""
        wait_until(lambda: self.landed() >= set(sent), "everything to land")
        run(self.database, self.settings, "email_opened")
        with self.database.connect() as connection:
            assert sorted(row[0] for row in contents(connection, "iterable.email_opened")) == sorted(sent)


@pytest.fixture(params=["spool", "no spool"])
def scene(
    request: pytest.FixtureRequest, served: Database, served_settings: Settings, tmp_path: Path
) -> Iterator[Scene]:
    """With a spool, the library always gets a 200. Without a spool, it has to try again."""
    spool = request.param == "spool"
    with served.begin() as connection:
        key = add_key(connection, "Iterable")
    with proxied(served_settings.database_url) as proxy:
        changes = {"database_url": proxy.url, "spool": tmp_path, "spool_bytes": 1_000_000 if spool else 0}
        met = "loader_spooled_events_total" if spool else 'loader_requests_total{code="503",route="/v1/batch"}'
        with collecting(served_settings.model_copy(update=changes)) as collector:
            yield Scene(collector, proxy, served, served_settings, key, met)


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an installation of Segment's library for Node."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("there is no Node on this machine")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "@segment/analytics-node"]
    if subprocess.run(install, cwd=folder, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("npm cannot install @segment/analytics-node here")
    return folder


def test_the_python_library_loses_nothing(scene: Scene) -> None:
    """Batches are compressed, and the library repeats them. Each event is in its table once."""
    failed: list[object] = []
    client = Client(
        scene.key,
        host=f"http://127.0.0.1:{scene.collector.port}",
        gzip=True,
        upload_size=4,
        upload_interval=0.01,
        on_error=lambda error, _: failed.append(error),
    )
    ids = [f"library-{number}" for number in range(EVENTS)]

    def send(some: list[str]) -> None:
        for each in some:
            client.track("u", "Email Opened", message_id=each)

    try:
        send(ids[:FIRST])
        scene.break_down(lambda: send(ids[FIRST:]))
        client.flush()
    finally:
        client.join()
        python_library._session.close()
    assert failed == []
    scene.assert_in_table(ids)


@pytest.mark.soak
def test_the_node_library_loses_nothing(scene: Scene, node: Path) -> None:
    """The library repeats batches. Each event that it believes delivered is in its table once."""
    numbers = (str(FIRST), str(EVENTS))
    command = ["node", "-e", NODE_PROGRAM, f"http://127.0.0.1:{scene.collector.port}", scene.key, *numbers]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=node, text=True, bufsize=1, **pipes) as process:

        def go_on() -> None:
            assert process.stdin
            process.stdin.write("go on\n")

        scene.break_down(go_on)
        output, errors = process.communicate(timeout=90)
    assert errors == ""
    sent = json.loads(output)
    assert len(sent) == EVENTS
    scene.assert_in_table(sent)
