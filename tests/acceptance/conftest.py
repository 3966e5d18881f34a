"""Fixtures that save a database and a process for each test."""

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import loader.collector.app
import loader.collector.write_keys
from loader.events.formats import ITERABLE_WEBHOOK
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.settings import Settings
from tests.conftest import Loader, MakeOnce, loader_here, own_database
from tests.support.collector_thread import Entrance, opened_entrance
from tests.support.example_events import CASES, accepted


@pytest.fixture(scope="module")
def module_settings(server: str, home: Path, raw_template: str) -> Iterator[Settings]:
    """Return settings of a database of the module, with the raw schema and the source Iterable."""
    with own_database(server, home, raw_template) as opened:
        yield opened


@pytest.fixture
def connection(module_settings: Settings) -> Iterator[psycopg.Connection]:
    """Return a connection to that database, without loaded events."""
    with psycopg.connect(module_settings.database_url, autocommit=True) as opened:
        # A truncate would make the files of all partitions again.
        for table in ("events", "write_keys", "sources", "loads", "quarantine", "discarded"):
            opened.execute(f"delete from raw.{table}")  # type: ignore[arg-type]
        opened.execute(
            "select setval(oid::regclass, 1, false) from pg_class"
            " where relkind = 'S' and relnamespace = 'raw'::regnamespace"
        )
        opened.execute("insert into raw.sources (name, schema_name) values ('Iterable', 'iterable')")
        yield opened


@pytest.fixture
def run_here(module_settings: Settings, connection: psycopg.Connection) -> Loader:
    """Run the command line on the module's database in this process; a traceback fails the test."""
    return loader_here(module_settings)


@pytest.fixture(scope="module")
def hasty_keys() -> Iterator[None]:
    """Make collectors of this process read write keys, and record their use, more often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader.collector.app, "REFRESH_SECONDS", 0.1)
        patch.setattr(loader.collector.app, "ASK_AGAIN_SECONDS", 0.05)
        patch.setattr(loader.collector.write_keys, "_USED_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def module_entrance(
    module_settings: Settings, tmp_path_factory: pytest.TempPathFactory, hasty_keys: None
) -> Iterator[Entrance]:
    """Return the module's collector, with its own spool."""
    settings = module_settings.model_copy(update={"spool": tmp_path_factory.mktemp("spool")})
    with opened_entrance(settings) as opened:
        yield opened


@pytest.fixture
def entrance(module_entrance: Entrance) -> Entrance:
    """Return that collector, without any received events."""
    module_entrance.empty()
    return module_entrance


@pytest.fixture(scope="session")
def example_settings(make_once: MakeOnce, served_template: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings of a database with both forms of every example: the track call of a file, and the webhook."""
    path = tmp_path_factory.mktemp("examples") / "examples.ndjson"
    path.write_text("".join(f"{json.dumps(example['track'])}\n" for example in CASES.values()), encoding="utf-8")

    def fill(settings: Settings) -> None:
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            events = [accepted(ITERABLE_WEBHOOK, example["webhook"], n) for n, example in enumerate(CASES.values())]
            with SchemaRegistry().transaction(connection) as seen:
                assert land(connection, "iterable", ITERABLE_WEBHOOK, events, seen).rows == len(CASES)
        loader = loader_here(settings)
        loaded = loader("load", str(path))
        assert loaded.returncode == 0, loaded.stderr
        transformed = loader("transform")
        assert transformed.returncode == 0, transformed.stderr

    return make_once("examples", served_template, fill)
