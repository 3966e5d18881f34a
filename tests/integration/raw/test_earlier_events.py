"""An upgrade with events of a version that did not record properties."""

from pathlib import Path

import alembic.command
import psycopg
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from loader.postgres.connection import connect
from loader.postgres.database import bundled
from loader.settings import Settings
from tests.conftest import loader_here, own_database
from tests.support.factories import insert_payload

WORDS = "Run `loader rescan`, then `loader transform`."


def bring_up(settings: Settings, revision: str) -> None:
    """Migrate the raw schema to an older revision."""
    config = Config()
    config.set_main_option("script_location", str(bundled("migrations")))
    engine = create_engine("postgresql+psycopg://", poolclass=NullPool, creator=lambda: connect(settings.database_url))
    with engine.begin() as connection:
        connection.execute(text("create schema raw"))
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)


def test_a15_an_upgrade_over_unrecorded_events_asks_for_a_rescan(server: str, home: Path, small_project: Path) -> None:
    """`migrate`, `transform` and `status` ask for a rescan until it has run. Then the properties get columns."""
    assert small_project
    with own_database(server, home) as settings:
        loader = loader_here(settings)
        bring_up(settings, "0006")
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            connection.execute("insert into raw.sources (name, schema_name) values ('Iterable', 'iterable')")
            call = {"event": "Email Opened", "userId": "u", "properties": {"colour": "red"}}
            insert_payload(connection, "e1", call)
            connection.execute(
                "insert into raw.mismatches (model, source, event_id, column_name, value)"
                " values ('email_opened', 'iterable', 'e1', 'campaign_id', repeat('9', 5000))"
            )

            assert WORDS in loader("migrate").stderr
            assert connection.execute("select value from raw.mismatches").fetchall() == [("9" * 1000 + "…",)]
            transformed = loader("transform")
            assert (transformed.returncode, WORDS in transformed.stderr) == (0, True)
            status = loader("status")
            assert (status.returncode, WORDS in status.stderr) == (1, True)

            assert loader("rescan").returncode == 0
            transformed = loader("transform")
            assert (transformed.returncode, WORDS in transformed.stderr) == (0, False)
            assert connection.execute("select id, colour from iterable.email_opened").fetchall() == [("e1", "red")]
            status = loader("status")
            assert (status.returncode, WORDS in status.stderr) == (0, False)


def test_a15_an_upgrade_without_unrecorded_properties_asks_for_no_rescan(server: str, home: Path) -> None:
    """An empty warehouse, and calls without properties, need no rescan."""
    with own_database(server, home) as settings:
        bring_up(settings, "0006")
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            connection.execute("insert into raw.sources (name, schema_name) values ('Iterable', 'iterable')")
            insert_payload(connection, "i1", {"type": "identify", "userId": "u"}, collection=None)
        assert loader_here(settings)("migrate").stderr == ""
        assert loader_here(settings)("status").returncode == 0
