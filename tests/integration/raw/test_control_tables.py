"""The control tables of SQLAlchemy equal those of the migrations."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, MetaData, Text, inspect
from sqlalchemy.dialects.postgresql.base import ischema_names

from loader.postgres.database import Database
from loader.raw.tables import Snapshot, metadata

# Only psycopg reads and writes these tables, in the transactions of the rows or over permanent connections.
DATA_PATH = {
    "dead_letters",
    "delivery_cursors",
    "destination_suppressions",
    "destinations",
    "events",
    "mart_inputs",
    "properties",
    "readers",
    "returned_calls",
    "restore_mark",
    "schedules",
    "spools",
}
# Alembic's own table.
REVISIONS = "alembic_version"


@pytest.fixture(autouse=True)
def known_snapshot_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make SQLAlchemy read columns of the type `pg_snapshot` without a warning."""
    monkeypatch.setitem(ischema_names, "pg_snapshot", Snapshot)


def differences(connection: Connection, tables: MetaData) -> list[tuple[object, ...]]:
    """Return the changes of the database that Alembic would need to match the definitions."""

    def is_read(name: str | None, kind: str, _: object) -> bool:
        return (kind != "schema" or name == "raw") and (kind != "table" or name in names(tables))

    def is_compared(_: object, __: object, kind: str, *___: object) -> bool:
        # The migrations define indexes, uniqueness and foreign keys, because no statement is built from them.
        return kind in {"table", "column"}

    options = {"include_schemas": True, "include_name": is_read, "include_object": is_compared, "compare_type": True}
    found: list[tuple[object, ...]] = []
    for change in compare_metadata(MigrationContext.configure(connection, opts=options), tables):
        found += change if isinstance(change, list) else [change]
    # Only the migrations hold comments.
    return [change for change in found if not str(change[0]).endswith("_comment")]


def test_the_definitions_equal_the_tables_of_the_migrations(database: Database) -> None:
    """Names, types and nullability of all columns are compared in both directions."""
    with database.begin() as connection:
        assert differences(connection, metadata) == []


def test_the_primary_keys_equal_the_primary_keys_of_the_migrations(database: Database) -> None:
    """Alembic does not compare primary keys."""
    with database.begin() as connection:
        inspector = inspect(connection)
        built = {name: inspector.get_pk_constraint(name, "raw")["constrained_columns"] for name in names(metadata)}
    assert built == {table.name: [column.name for column in table.primary_key] for table in metadata.tables.values()}


def test_every_table_of_the_migrations_is_defined_or_in_the_data_path(database: Database) -> None:
    """A table of a new migration must be added to one of the two lists."""
    with database.begin() as connection:
        inspector = inspect(connection)
        parents = {name for name in inspector.get_table_names("raw") if not name.startswith("events_")}
    assert parents == names(metadata) | DATA_PATH | {REVISIONS}
    assert not names(metadata) & DATA_PATH


@pytest.mark.parametrize(
    ("column", "change"),
    [
        (Column("rescan_wanted", Text, nullable=False), "modify_type"),
        (Column("rescan_wanted", metadata.tables["raw.generation"].c.rescan_wanted.type), "modify_nullable"),
        (Column("another", Text), "add_column"),
    ],
    ids=["type", "nullability", "name"],
)
def test_the_comparison_finds_a_difference(database: Database, column: Column[object], change: str) -> None:
    """An empty comparison therefore means equal tables."""
    other = MetaData()
    for table in metadata.tables.values():
        table.to_metadata(other)
    other.tables["raw.generation"].append_column(column, replace_existing=True)
    with database.begin() as connection:
        [found] = differences(connection, other)
    assert found[0] == change


def names(tables: MetaData) -> set[str]:
    """Return the names of the defined tables."""
    return {table.name for table in tables.tables.values()}
