"""Ways to run commands that take less time than a database and a process for each test."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from loader.cli import main
from loader.settings import Settings, read_settings
from tests.conftest import Loader, cloned


@pytest.fixture(scope="module")
def module_settings(server: str, home: Path, raw_template: str) -> Iterator[Settings]:
    """Settings that name a database of the module's own, with the raw schema and the source Iterable."""
    with cloned(server, home, raw_template) as opened:
        yield opened


@pytest.fixture
def connection(module_settings: Settings) -> Iterator[psycopg.Connection]:
    """A connection to that database, in which nothing has been loaded."""
    with psycopg.connect(module_settings.database_url, autocommit=True) as opened:
        opened.execute("truncate raw.events, raw.loads, raw.quarantine, raw.sources, raw.write_keys restart identity")
        opened.execute("insert into raw.sources (name, schema_name) values ('Iterable', 'iterable')")
        yield opened


@pytest.fixture
def run_here(module_settings: Settings, connection: psycopg.Connection) -> Iterator[Loader]:
    """Run the command line on the module's database without starting a process; a traceback fails the test."""
    environment = {"DATABASE_URL": module_settings.database_url, "LOADER_HOME": str(module_settings.home)}

    def run(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        read_settings.cache_clear()
        result = CliRunner(env=environment).invoke(main, arguments, input=stdin, catch_exceptions=False)
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    yield run
    read_settings.cache_clear()
