"""Defines the control tables of the schema raw for SQLAlchemy's statements.

Only the migrations create the tables. The definitions hold names, types, nullability and primary keys, and a test
compares the definitions with a migrated database. Tables that only the data path uses are left out.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Identity,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.types import UserDefinedType


class Snapshot(UserDefinedType[str]):
    """PostgreSQL's `pg_snapshot`, as text."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name in SQL."""
        return "pg_snapshot"


def fits_bigint(number: int) -> bool:
    """Return whether a column of type `bigint` can hold a number; the database raises an error for larger numbers."""
    return -(2**63) <= number < 2**63


_Moment = TIMESTAMP(timezone=True)

metadata = MetaData(schema="raw")

sources = Table(
    "sources",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("schema_name", Text, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("created_at", _Moment, nullable=False),
)

write_keys = Table(
    "write_keys",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", BigInteger, ForeignKey(sources.c.id), nullable=False),
    Column("key_sha256", LargeBinary, nullable=False),
    Column("label", Text, nullable=False),
    Column("created_at", _Moment, nullable=False),
    Column("last_used_at", _Moment),
    Column("revoked_at", _Moment),
)

loads = Table(
    "loads",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("byte_offset", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("size", BigInteger),
    Column("content_digest", LargeBinary),
    Column("rows", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("started_at", _Moment, nullable=False),
    Column("updated_at", _Moment, nullable=False),
    Column("finished_at", _Moment),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("entrance", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("path", Text),
    Column("byte_offset", BigInteger),
    Column("received_at", _Moment, nullable=False),
    Column("resolved_at", _Moment),
    Column("resolution", Text),
)

discarded = Table(
    "discarded",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("entrance", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("path", Text),
    Column("messages", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("first_received_at", _Moment, nullable=False),
    Column("last_received_at", _Moment, nullable=False),
    Column("discarded_at", _Moment, nullable=False),
)

collections = Table(
    "collections",
    metadata,
    Column("source", Text, primary_key=True),
    Column("collection", Text, primary_key=True),
    Column("event", Text, nullable=False),
    Column("number", BigInteger, Identity(always=True), nullable=False),
    Column("first_event_id", Text, nullable=False),
    Column("first_seen_at", _Moment, nullable=False),
    Column("untracked", Boolean, nullable=False),
    Column("tried_at", _Moment),
    Column("admitted_at", _Moment),
)

transforms = Table(
    "transforms",
    metadata,
    Column("id", Text, primary_key=True),
    Column("snapshot", Snapshot, nullable=False),
    Column("started_at", _Moment, nullable=False),
    Column("finished_at", _Moment),
    Column("status", Text, nullable=False),
    Column("error", Text),
    Column("whole", Boolean, nullable=False),
    Column("filled", ARRAY(Text), nullable=False),
)

cursors = Table(
    "cursors",
    metadata,
    Column("model", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("snapshot", Snapshot),
    Column("read_rows", BigInteger, nullable=False),
    Column("table_rows", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("updated_at", _Moment, nullable=False),
    Column("rebuild_ordered", Boolean, nullable=False),
    Column("rewrites", BigInteger, nullable=False),
)

marts = Table(
    "marts",
    metadata,
    Column("source", Text, primary_key=True),
    Column("mart", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("oldest_version", BigInteger, nullable=False),
    Column("logged_rows", BigInteger, nullable=False),
    Column("fingerprint", Text),
    Column("variables", JSONB, nullable=False),
    Column("filled_at", _Moment),
    Column("last_run", Text),
    Column("note", Text),
    Column("error", Text),
    Column("failed_at", _Moment),
)

syncs = Table(
    "syncs",
    metadata,
    Column("transform_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("full_refresh", Boolean, nullable=False),
    Column("read_rows", BigInteger, nullable=False),
    Column("table_rows", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("new_columns", ARRAY(Text), nullable=False),
    Column("previous_snapshot", Snapshot),
    Column("snapshot", Snapshot),
    Column("started_at", _Moment, nullable=False),
    Column("duration", Interval, nullable=False),
    Column("refilled", Boolean, nullable=False),
    Column("note", Text),
)

columns = Table(
    "columns",
    metadata,
    Column("model", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("column_name", Text, primary_key=True),
    Column("data_type", Text, nullable=False),
    Column("declared", Boolean, nullable=False),
    Column("paths", JSONB, nullable=False),
    Column("first_event_id", Text),
    Column("added_at", _Moment, nullable=False),
    Column("wanted_type", Text),
    Column("in_the_way", Text),
    Column("next_try_at", _Moment),
    Column("is_missing", Boolean, nullable=False),
    Column("fill_from", Snapshot),
)

waiting_indexes = Table(
    "waiting_indexes",
    metadata,
    Column("model", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("uniqueness", Text, nullable=False),
    Column("columns", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", _Moment, nullable=False),
)

mismatches = Table(
    "mismatches",
    metadata,
    Column("model", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("column_name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("seen_at", _Moment, nullable=False),
)

collisions = Table(
    "collisions",
    metadata,
    Column("model", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("path", ARRAY(Text), nullable=False),
    Column("column_name", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("seen_at", _Moment, nullable=False),
)

held_tables = Table(
    "held_tables",
    metadata,
    Column("model", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("held", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("since", _Moment, nullable=False),
    Column("tried_at", _Moment, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_try_at", _Moment),
)

generation = Table(
    "generation",
    metadata,
    Column("number", BigInteger, nullable=False),
    Column("rescan_wanted", Boolean, nullable=False),
)

cluster = Table(
    "cluster",
    metadata,
    Column("singleton", Boolean, primary_key=True),
    Column("system_identifier", BigInteger, nullable=False),
    Column("adopted_at", _Moment, nullable=False),
    Column("warehouse_id", Uuid(as_uuid=False), nullable=False),
)
