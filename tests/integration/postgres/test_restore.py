"""A dump restored into another cluster continues at its state, although its transaction ids are invalid there."""

from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import open_database
from loader.settings import Settings
from loader.transform.status import read_status
from tests.conftest import restored
from tests.support.dbt_runs import copied_project, run, run_dbt

MODELS = ("email_opened", "tracks")
EVENT = """
    insert into raw.events (source, collection, message_id, payload)
    values ('iterable', %s, %s, jsonb_build_object('type', 'track', 'userId', %s::text))
"""


def land(url: str, collection: str, *message_ids: str) -> None:
    """Land events, each in a separate transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        for message_id in message_ids:
            connection.execute(EVENT, (collection, message_id, message_id))


def ids(url: str, table: str) -> list[str]:
    """Return the ids in a table."""
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(f"select id from iterable.{table} order by id")]


@pytest.mark.parametrize("behind", [pytest.param("everything", marks=pytest.mark.heavy), "one table"])
def test_a_restored_database_transforms_each_waiting_event_once(
    small_settings: Settings, other_server: str, small_home: Path, behind: str
) -> None:
    """Events that waited at the time of the dump are transformed once, no row is doubled, and new events follow."""
    url = small_settings.database_url
    land(url, "email_opened", "a", "b")
    land(url, "order_placed", "c")
    with open_database(small_settings) as database:
        run(database, small_settings, *MODELS)
        land(url, "email_opened", "d", "a")
        if behind == "one table":
            run(database, small_settings, "email_opened")
            land(url, "email_opened", "e")

    with restored(url, other_server, small_home) as settings:
        copy = settings.database_url
        with open_database(settings) as database:
            with database.begin() as connection:
                status = read_status(connection)
                assert all(law.holds for law in status.conservation)
                assert status.waiting > 0
            run(database, settings)
            land(copy, "email_opened", "f")
            run(database, settings, *MODELS)
            with database.begin() as connection:
                law = read_status(connection).conservation[0]

        opened = ["a", "b", "d", "e", "f"] if behind == "one table" else ["a", "b", "d", "f"]
        assert ids(copy, "email_opened") == opened
        assert ids(copy, "tracks") == sorted([*opened, "c"])
    assert law.holds
    assert (law.in_collections, law.in_tracks_only, law.duplicates, law.waiting) == (len(opened), 1, 1, 0)


def test_dbt_alone_notices_the_restore(small_settings: Settings, other_server: str, small_home: Path) -> None:
    """A dbt run by hand may be the first command after a restore."""
    url = small_settings.database_url
    land(url, "email_opened", "a")
    with open_database(small_settings) as database:
        run(database, small_settings, *MODELS)
    land(url, "email_opened", "b")
    with restored(url, other_server, small_home) as settings:
        copy = settings.database_url
        code, output = run_dbt(copy, copied_project(settings), "run", "--select", *MODELS)
        assert code == 0, output
        assert ids(copy, "email_opened") == ids(copy, "tracks") == ["a", "b"]
