"""One PostgreSQL for the whole test run, one database cloned from a template for each test that asks for one."""

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest
from sqlalchemy import text

from loader.database import Database, open_database
from loader.embedded import EmbeddedServer
from loader.settings import Settings, read_settings
from loader.transform import transform

DATA = Path(__file__).parent / "data"

# A machine that is slow, or busy with something else, is no failure.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """No setting of the person who runs the tests reaches them."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("LOADER_", "PG", "DBT_")) or name == "DATABASE_URL":
            del os.environ[name]
    read_settings.cache_clear()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A folder for the run's server and dbt's artifacts, which the server's own user can enter when we are root."""
    with tempfile.TemporaryDirectory(prefix="loader-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[str]:
    """The run's PostgreSQL, as the URL of its maintenance database."""
    embedded = EmbeddedServer(home, idle=60)
    url = embedded.acquire()
    with psycopg.connect(url, autocommit=True) as connection:
        # Tests kill processes, never the machine; and dropping a database would wait for the disk each time.
        connection.execute("alter system set fsync = off")
        connection.execute("alter system set full_page_writes = off")
        connection.execute("select pg_reload_conf()")
    yield url
    embedded.stop()


def create_database(server: str, name: str, template: str = "template1") -> str:
    """Clone a database and return its URL."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'create database "{name}" template "{template}"')
    return f"{server.rsplit('/', 1)[0]}/{name}"


def drop_database(server: str, name: str) -> None:
    """Drop a database, whoever is still connected to it."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'drop database if exists "{name}" with (force)')


def open_settings(url: str, home: Path) -> Settings:
    """Settings for one database; dbt's artifacts are shared, so that it parses the project once."""
    return Settings.model_construct(
        database_url=url, home=home, embedded_port=0, embedded_idle=60.0, workers=2, threads=4
    )


@pytest.fixture(scope="session")
def raw_template(server: str, home: Path) -> str:
    """The name of a database with the raw schema and the source Iterable."""
    url = create_database(server, "raw_template")
    with open_database(open_settings(url, home), migrate_behind=True) as database, database.begin() as connection:
        connection.execute(text("insert into raw.sources (name, schema_name) values ('Iterable', 'iterable')"))
    return "raw_template"


@pytest.fixture(scope="session")
def served_template(server: str, home: Path, raw_template: str) -> str:
    """The name of a database in which every table has been made, all of them empty."""
    url = create_database(server, "served_template", raw_template)
    settings = open_settings(url, home)
    with open_database(settings) as database:
        transform(database, settings)
    return "served_template"


@pytest.fixture
def empty_url(server: str) -> Iterator[str]:
    """A database with nothing in it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield create_database(server, name)
    drop_database(server, name)


@contextmanager
def cloned(server: str, home: Path, template: str) -> Iterator[Settings]:
    """Settings that name a clone of a template, dropped at the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield open_settings(create_database(server, name, template), home)
    drop_database(server, name)


@pytest.fixture
def settings(server: str, home: Path, raw_template: str) -> Iterator[Settings]:
    """Settings that name a database of the test's own, with the raw schema and the source Iterable."""
    with cloned(server, home, raw_template) as opened:
        yield opened


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """That database, open."""
    with open_database(settings) as opened:
        yield opened


@pytest.fixture
def served_settings(server: str, home: Path, served_template: str) -> Iterator[Settings]:
    """Settings that name a database of the test's own, in which every table is there and empty."""
    with cloned(server, home, served_template) as opened:
        yield opened


@pytest.fixture
def served(served_settings: Settings) -> Iterator[Database]:
    """That database, open."""
    with open_database(served_settings) as opened:
        yield opened


Loader = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_loader(settings: Settings) -> Loader:
    """Run the command line as a person does, against the test's own database."""
    return loader_command(settings)


def loader_command(settings: Settings) -> Loader:
    """Return a function that runs `loader` with arguments, against the database the settings name."""

    def run(*arguments: str, stdin: bytes | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"DATABASE_URL": settings.database_url, "LOADER_HOME": str(settings.home)}
        done = subprocess.run(
            [sys.executable, "-m", "loader.cli", *arguments],
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


__all__ = ["DATA", "create_database", "drop_database", "loader_command", "open_settings"]
