"""Ways to run commands that take less time than a database and a process for each test."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from loader.settings import Settings
from tests.collecting import Entrance, opened_entrance
from tests.conftest import Loader, cloned, loader_here


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
def run_here(module_settings: Settings, connection: psycopg.Connection) -> Loader:
    """Run the command line on the module's database without starting a process; a traceback fails the test."""
    return loader_here(module_settings)


@pytest.fixture(scope="module")
def module_entrance(module_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entrance]:
    """The module's collector, with a spool of its own."""
    settings = module_settings.model_copy(update={"spool": tmp_path_factory.mktemp("spool")})
    with opened_entrance(settings) as opened:
        yield opened


@pytest.fixture
def entrance(module_entrance: Entrance) -> Entrance:
    """That collector, as if nothing had come in yet."""
    module_entrance.empty()
    return module_entrance
