"""An older dump is restored under a running collector, whose copy of the schema registry becomes invalid."""

import subprocess
from pathlib import Path

import psycopg
import pytest

from loader.buffer.connection_pool import CONNECTIONS
from loader.postgres.database import open_database
from loader.raw.sources import add_key
from loader.settings import Settings
from tests.conftest import create_database, drop_database, postgres_program
from tests.support.collector_thread import Collecting, collecting
from tests.support.load import track
from tests.support.tcp_proxy import Proxy, proxied
from tests.support.waiting import wait_until

# Enough equal events for the following events to be usual.
USUAL = 60


def send(collector: Collecting, key: str, *message_ids: str) -> None:
    """Send events with one property each, one request after the other."""
    for each in message_ids:
        assert collector.post("/v1/track", track(each, campaignId=1, colour="red"), key=key).status == 200


def paths(settings: Settings) -> list[str]:
    """Return the recorded properties, with dots between their keys."""
    with psycopg.connect(settings.database_url) as connection:
        rows = connection.execute("select path from raw.properties order by number").fetchall()
    return [".".join(path) for (path,) in rows]


def dump(settings: Settings, file: Path) -> None:
    """Dump a database with pg_dump."""
    subprocess.run(
        [postgres_program("pg_dump"), "--format=custom", f"--file={file}", settings.database_url], check=True
    )


def restore(settings: Settings, file: Path, *options: str) -> None:
    """Restore a dump with pg_restore."""
    program = [postgres_program("pg_restore"), "--single-transaction", "--exit-on-error", *options]
    subprocess.run([*program, f"--dbname={settings.database_url}", file], check=True)


def replace_database(settings: Settings, server: str, proxy: Proxy, file: Path) -> None:
    """Drop the database and restore the dump into a new database of the same name; every connection ends."""
    name = settings.database_url.rsplit("/", 1)[1]
    proxy.stop()
    drop_database(server, name)
    create_database(server, name)
    restore(settings, file)
    proxy.start()
    with psycopg.connect(server, autocommit=True) as connection:
        opened = "select from pg_stat_activity where datname = %s and application_name = 'loader'"
        wait_until(
            lambda: len(connection.execute(opened, (name,)).fetchall()) >= CONNECTIONS,
            "the connections to be opened again",
        )


def restore_in_place(settings: Settings, server: str, proxy: Proxy, file: Path) -> None:
    """Restore the dump over the existing tables; no connection ends."""
    restore(settings, file, "--clean", "--if-exists")


def copy_record(settings: Settings, server: str, proxy: Proxy, file: Path) -> None:
    """Restore only the data of the schema registry, by TRUNCATE and COPY; the tables stay the same."""
    with psycopg.connect(settings.database_url) as connection:
        connection.execute("truncate raw.properties, raw.collections")
    tables = ["--table=properties", "--table=collections"]
    program = [postgres_program("pg_restore"), "--schema=raw", "--data-only", *tables]
    subprocess.run([*program, f"--dbname={settings.database_url}", file], check=True)


@pytest.mark.parametrize("bring_back", [replace_database, restore_in_place, copy_record])
def test_a9_a_property_the_restored_dump_lacks_is_recorded_again(
    settings: Settings, server: str, tmp_path: Path, bring_back: object
) -> None:
    """The event lands as usual, and is checked against the present registry."""
    assert callable(bring_back)
    with open_database(settings) as database, database.begin() as transaction:
        key = add_key(transaction, "Iterable")
    dump(settings, tmp_path / "older.dump")
    with proxied(settings.database_url) as proxy:
        beyond = settings.model_copy(
            update={"database_url": proxy.url, "spool": tmp_path / "spool", "commit_seconds": 2.0, "processes": 1}
        )
        with collecting(beyond) as collector:
            send(collector, key, *map(str, range(USUAL)))
            # The thread that keeps a refused call first checks the events that landed before.
            assert collector.post("/v1/track", {"event": "Email Opened"}, key=key).status == 400
            assert paths(settings) == ["properties.campaignId", "properties.colour"]
            bring_back(settings, server, proxy, tmp_path / "older.dump")
            assert paths(settings) == []
            send(collector, key, "after")
            wait_until(lambda: len(paths(settings)) == 2, "the properties to be recorded again")
            with psycopg.connect(settings.database_url) as connection:
                collections = connection.execute("select collection from raw.collections").fetchall()
                landed = connection.execute("select distinct message_id from raw.events where message_id = 'after'")
                assert (collections, landed.fetchall()) == ([("email_opened",)], [("after",)])
