"""Manages sources and write keys, which decide the senders of events and the schemas of their tables.

A source feeds one schema, and no other source may feed this schema. A source can have any number of keys, so a key can
be replaced while the old key still works. The database keeps only the SHA-256 of a key.
"""

import hashlib
import re
import secrets
import shlex
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, or_, select, text, update

from loader.errors import SourceError
from loader.events.naming import IDENTIFIER_BYTES, schema_name
from loader.raw.tables import fits_bigint, sources, write_keys

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]*\Z")
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9-]*\Z")

# Schemas that every database uses for other purposes.
_TAKEN = frozenset({"raw", "public", "information_schema"})

# The marts of a source have a schema of their own, named after that of the source.
_MARTS_SUFFIX = "_marts"


@dataclass(frozen=True)
class Source:
    """A source, with the fields that `loader source list` shows."""

    name: str
    schema: str
    labels: dict[str, str]
    keys: int
    created_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True)
class WriteKey:
    """A write key, with the fields that `loader key list` shows; the key itself is not stored."""

    id: int
    source: str
    label: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


def add_source(
    connection: Connection, name: str, *, schema: str = "", labels: dict[str, str] | None = None
) -> tuple[str, str]:
    """Add a source with a first write key.

    Args:
        connection: An open transaction.
        name: The name for people, e.g. `Iterable`.
        schema: The name of the schema; if empty, it is derived from the name of the source.
        labels: Labels of the source, e.g. `{"environment": "prod"}`.

    Returns:
        The name of the schema, and the write key. The key cannot be read again later.

    Raises:
        SourceError: The name, the schema or a label is not valid, or the name or the schema is in use.
    """
    name = name.strip()
    schema = schema or schema_name(name)
    _check_schema(name, schema)
    for key, value in (labels or {}).items():
        if not _LABEL.match(key) or not _LABEL.match(value):
            raise SourceError(
                f"Label {key}:{value} is not valid: key and value start with a letter and contain only letters, digits "
                "and -."
            )
    _check_marts(connection, schema)
    holder = connection.execute(
        select(sources.c.name).where(or_(sources.c.name == name, sources.c.schema_name == schema))
    ).first()
    if holder and holder.name == name:
        raise SourceError(f"Source {name} exists already; `loader key add {shlex.quote(name)}` makes another key.")
    if holder:
        raise SourceError(
            f"Schema {schema} belongs to source {holder.name}: two sources cannot feed one schema. "
            "Choose another schema with --schema."
        )
    if connection.execute(
        text("select exists (select from pg_class where relnamespace = to_regnamespace(:schema))"), {"schema": schema}
    ).scalar_one():
        raise SourceError(
            f"Schema {schema} exists, and no source has this schema. Choose another schema with --schema."
        )
    connection.execute(insert(sources).values(name=name, schema_name=schema, labels=labels or {}))
    return schema, add_key(connection, name)


def find_source(connection: Connection, name: str | None, *, naming: str = "--source") -> str:
    """Return the schema of a source.

    Args:
        connection: An open transaction.
        name: The name or schema of the source; None for the only source.
        naming: The option that names a source, for the error message.

    Raises:
        SourceError: The source does not exist, or there are several sources and `name` is None.
    """
    rows = connection.execute(select(sources.c.name, sources.c.schema_name).order_by(sources.c.id)).all()
    if not rows:
        raise SourceError("There is no source yet. `loader source add Iterable` adds a source.")
    names = ", ".join(row.name for row in rows)
    if name is None:
        if len(rows) > 1:
            raise SourceError(f"There are several sources ({names}). Name the source with {naming}.")
        return str(rows[0].schema_name)
    for row in rows:
        if name in {row.name, row.schema_name}:
            return str(row.schema_name)
    raise SourceError(f"There is no source {name}. The sources are: {names}.")


def list_sources(connection: Connection) -> list[Source]:
    """Return every source, the oldest first."""
    rows = connection.execute(
        select(
            sources.c.name,
            sources.c.schema_name.label("schema"),
            sources.c.labels,
            func.count(write_keys.c.id).filter(write_keys.c.revoked_at.is_(None)).label("keys"),
            sources.c.created_at,
            func.max(write_keys.c.last_used_at).label("last_used_at"),
        )
        .outerjoin_from(sources, write_keys)
        .group_by(sources.c.id)
        .order_by(sources.c.id)
    )
    return [Source(**row) for row in rows.mappings()]


def add_key(connection: Connection, source: str, *, label: str = "") -> str:
    """Make a write key for a source and return the key, which cannot be read again later.

    Raises:
        SourceError: There is no such source.
    """
    schema = find_source(connection, source)
    key = _make_key()
    connection.execute(
        insert(write_keys).values(
            source_id=select(sources.c.id).where(sources.c.schema_name == schema).scalar_subquery(),
            key_sha256=key_digest(key),
            label=label,
        )
    )
    return key


def _make_key() -> str:
    """Return a new write key without a hyphen at its start, because a command would read such a key as an option."""
    while (key := secrets.token_urlsafe(24)).startswith("-"):
        pass
    return key


def list_keys(connection: Connection, source: str | None = None) -> list[WriteKey]:
    """Return the write keys of one source, or of all sources.

    Raises:
        SourceError: There is no such source.
    """
    query = (
        select(
            write_keys.c.id,
            sources.c.name.label("source"),
            write_keys.c.label,
            write_keys.c.created_at,
            write_keys.c.last_used_at,
            write_keys.c.revoked_at,
        )
        .join_from(write_keys, sources)
        .order_by(write_keys.c.id)
    )
    if source:
        query = query.where(sources.c.schema_name == find_source(connection, source))
    rows = connection.execute(query)
    return [WriteKey(**row) for row in rows.mappings()]


def revoke_key(connection: Connection, number: int) -> None:
    """Revoke a write key; a second revocation of the same key changes nothing.

    Raises:
        SourceError: There is no key with this number.
    """
    statement = (
        update(write_keys)
        .where(write_keys.c.id == number)
        .values(revoked_at=func.coalesce(write_keys.c.revoked_at, func.now()))
    )
    if not fits_bigint(number) or connection.execute(statement).rowcount == 0:
        raise SourceError(f"There is no key {number}. `loader key list` shows the keys.")


def key_digest(key: str) -> bytes:
    """Return the SHA-256 of a write key, which the database keeps in place of the key."""
    return hashlib.sha256(key.encode()).digest()


def _check_schema(name: str, schema: str) -> None:
    if not name or not schema:
        raise SourceError(f"No schema can be derived from the name {name!r}. Choose a schema with --schema.")
    if not _SCHEMA.match(schema) or len(schema) > IDENTIFIER_BYTES:
        raise SourceError(
            f"{schema} cannot be the name of a schema: lower-case letters, digits and _, not starting with a digit, "
            f"at most {IDENTIFIER_BYTES} of them."
        )
    if schema in _TAKEN or schema.startswith("pg_"):
        raise SourceError(f"Schema {schema} is reserved by the database. Choose another schema with --schema.")
    if len(schema + _MARTS_SUFFIX) > IDENTIFIER_BYTES:
        raise SourceError(
            f"Schema {schema} leaves no room for the schema of its marts, {schema}{_MARTS_SUFFIX}: a name has at most "
            f"{IDENTIFIER_BYTES} characters. Choose a shorter schema with --schema."
        )


def _check_marts(connection: Connection, schema: str) -> None:
    """Refuse a schema that the marts of another source have, or whose marts would have the schema of another source."""
    alike = (schema.removesuffix(_MARTS_SUFFIX), schema + _MARTS_SUFFIX)
    clash = connection.execute(
        select(sources.c.name).where(sources.c.schema_name.in_(alike), sources.c.schema_name != schema)
    ).first()
    if clash:
        raise SourceError(
            f"Schema {schema} does not go with source {clash.name}: the marts of a source are in its schema with "
            f"{_MARTS_SUFFIX} at the end, and both would share a schema. Choose another schema with --schema."
        )
