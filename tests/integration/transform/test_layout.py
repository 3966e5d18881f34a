"""The tables have the layout's names, columns, types, keys and comments, from the first run on."""

import csv
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from loader.events.naming import RESERVED_WORDS, table_name
from loader.postgres.database import bundled
from tests.conftest import own_database
from tests.support.folders import DATA

LAYOUT = {
    "id": "character varying(1024)",
    "received_at": "timestamp with time zone",
    "uuid_ts": "timestamp with time zone",
    "anonymous_id": "text",
    "user_id": "text",
    "event": "text",
    "event_text": "text",
    "original_timestamp": "text",
    "sent_at": "timestamp with time zone",
    "timestamp": "timestamp with time zone",
    "context_integration_name": "text",
    "context_integration_version": "text",
    "context_library_name": "text",
    "context_library_version": "text",
    "context_traits_email": "text",
}
CLIENT = {"context_ip": "text", "context_user_agent": "text", "context_os_name": "text"}
WITH_CLIENT = {"Email Opened", "Email Link Clicked", "Hosted Unsubscribe Click", "SMS Clicked"}
TYPES = {
    "text": "text",
    "bigint": "bigint",
    "boolean": "boolean",
    "timestamp": "text",
    "json": "text",
    "double": "numeric",
}
SEND_SKIP = {f"{channel}_send_skip" for channel in ("email", "push", "sms", "in_app", "web_push")}

with (DATA / "property_catalog.csv").open(encoding="utf-8", newline="") as file:
    CATALOG = list(csv.DictReader(file))
COLLECTIONS = sorted({row["collection"] for row in CATALOG})


def declared(collection: str) -> dict[str, str]:
    """Return the columns that a collection must have, from the facts alone."""
    columns = LAYOUT | (CLIENT if collection in WITH_CLIENT else {})
    for row in CATALOG:
        is_context = row["property_json_name"] in {"ip", "userAgent"}
        if row["collection"] == collection and row["attested_by"] != "inferred" and not is_context:
            columns.setdefault(row["column_name_snake"], TYPES[row["type"]])
    return columns


@pytest.fixture(scope="module")
def connection(server: str, home: Path, served_template: str) -> Iterator[psycopg.Connection]:
    """Return a connection to a database in which dbt has run once, without events; no test changes it."""
    with (
        own_database(server, home, served_template) as settings,
        psycopg.connect(settings.database_url, autocommit=True) as opened,
    ):
        opened.read_only = True
        yield opened


def columns(connection: psycopg.Connection, table: str) -> dict[str, str]:
    """Return a table's columns with their types."""
    return dict(
        connection.execute(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
            (f"iterable.{table}",),
        ).fetchall()
    )


def test_every_table_exists_after_the_first_run(connection: psycopg.Connection) -> None:
    """After the first run, the 22 documented collections, the five send skips and tracks exist, and nothing else."""
    tables = {
        row[0]
        for row in connection.execute(
            "select relname from pg_class where relnamespace = 'iterable'::regnamespace and relkind = 'r'"
        )
    }
    assert tables == {table_name(collection) for collection in COLLECTIONS} | SEND_SKIP | {"tracks"}
    assert len(COLLECTIONS) == 22


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_a_collection_has_the_columns_of_its_attested_properties(
    connection: psycopg.Connection, collection: str
) -> None:
    """These are the layout's columns, the context's, and every attested property of the collection, with its type."""
    assert columns(connection, table_name(collection)) == declared(collection)


def test_tracks_has_the_columns_of_a_segment_warehouse(connection: psycopg.Connection) -> None:
    """These are the columns that all events share, without properties."""
    assert columns(connection, "tracks") == LAYOUT | CLIENT


def test_send_skips_have_the_common_message_properties(connection: psycopg.Connection) -> None:
    """These are the properties of every message, and the reason of the skip."""
    expected = LAYOUT | {
        "email": "text",
        "created_at": "text",
        "campaign_id": "bigint",
        "campaign_name": "text",
        "template_id": "bigint",
        "template_name": "text",
        "workflow_id": "bigint",
        "workflow_name": "text",
        "channel_id": "bigint",
        "message_type_id": "bigint",
        "experiment_id": "bigint",
        "message_id": "text",
        "content_id": "bigint",
        "labels": "text",
        "locale": "text",
        "transactional_data": "text",
        "reason": "text",
    }
    for table in SEND_SKIP:
        assert columns(connection, table) == expected


def test_the_primary_key_is_the_only_unique_index(connection: psycopg.Connection) -> None:
    """Each table has one on the id, with the name that Segment uses. The indexes for readers are not unique."""
    found = connection.execute(
        "select tablename, indexname, indexdef from pg_indexes"
        " where schemaname = 'iterable' and indexdef like 'CREATE UNIQUE %' order by 1"
    ).fetchall()
    assert len(found) == 28
    for table, name, definition in found:
        assert name == f"{table}_pkey"
        assert definition == f"CREATE UNIQUE INDEX {name} ON iterable.{table} USING btree (id)"


def test_every_table_and_column_has_a_comment(connection: psycopg.Connection) -> None:
    """BI tools show the comments, so every table and column has a comment."""
    silent = connection.execute(
        "select relname, attname from pg_class join pg_attribute on attrelid = pg_class.oid"
        " where relnamespace = 'iterable'::regnamespace and relkind = 'r' and attnum > 0 and not attisdropped"
        " and (col_description(attrelid, attnum) is null or obj_description(pg_class.oid, 'pg_class') is null)"
    ).fetchall()
    assert silent == []


def test_each_model_has_a_partition_of_its_own(connection: psycopg.Connection) -> None:
    """The partitions of raw.events are those of the collections' models, and one for the rest."""
    partitions = {
        row[0]
        for row in connection.execute(
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'raw.events'::regclass"
        )
    }
    models = {path.stem for path in (bundled("dbt_project") / "models" / "iterable").glob("*.sql")} - {"tracks"}
    assert partitions == {f"raw.events_{model}" for model in models} | {"raw.events_other"}


def test_no_declared_name_is_reserved(connection: psycopg.Connection) -> None:
    """No column needs quotes but the layout's `timestamp`, which Segment's list of reserved words does not have."""
    for table in [table_name(collection) for collection in COLLECTIONS] + ["tracks"]:
        assert not RESERVED_WORDS & columns(connection, table).keys()
