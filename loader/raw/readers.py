"""Manages readers: database roles for BI tools and people, which may only select from the tables of sources.

The table `raw.readers` lists all readers. A run that creates the schema of a source calls `raw.admit_readers`, so that
a reader of all sources can also read later sources. Default privileges cover later tables.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from loader.errors import UsageError
from loader.events.naming import IDENTIFIER_BYTES
from loader.postgres.database import url_of_role
from loader.postgres.file_locks import LockedFolder
from loader.postgres.statements import read_statement

# The reader of the embedded database. `loader url` prints the URL of this reader.
DEFAULT_READER = "warehouse_reader"

_NAME = re.compile(r"[a-z_][a-z0-9_]*\Z")
_CONNECTIONS = 20
_SESSION_SETTINGS = {
    "default_transaction_read_only": "on",
    "statement_timeout": "5min",
    "idle_in_transaction_session_timeout": "10min",
}
# A run that creates a schema holds the same lock.
_LOCK = "select pg_advisory_xact_lock(hashtext('create schema'))"
_READERS = read_statement(__file__, "list")
_MAY_CREATE_ROLES = "select rolsuper or rolcreaterole from pg_roles where rolname = current_user"
_OWNS = read_statement(__file__, "owned_objects")


@dataclass(frozen=True)
class Reader:
    """A reader, as `loader reader list` shows it.

    Attributes:
        name: The name of the role.
        sources: Schemas of the sources whose tables the reader can read; `all` includes later sources.
        created_at: The time when the reader was added.
        sessions: Number of present sessions of the reader.
        role: `present`, or `missing` if the database has no such role, as after a restore.
    """

    name: str
    sources: str
    created_at: datetime
    sessions: int
    role: str


@dataclass(frozen=True)
class NewReader:
    """The URL of a new reader, and the SQL that is still to run.

    Attributes:
        url: The URL for connections of the reader.
        statements: SQL that makes the reader, for a role with the right to create roles; empty if the reader exists.
    """

    url: str
    statements: str


def add_reader(connection: psycopg.Connection, url: str, name: str, schemas: Sequence[str] = ()) -> NewReader:
    """Make a reader of some sources, or of all present and later sources.

    Args:
        connection: A connection in autocommit.
        url: The URL of the database.
        name: The name of the role.
        schemas: Schemas of sources; empty for all sources.

    Raises:
        UsageError: The name is not valid for a reader, or the role exists.
    """
    if not _NAME.match(name) or len(name) > IDENTIFIER_BYTES or name.startswith("pg_"):
        raise UsageError(
            f"{name} cannot be the name of a reader: lower-case letters, digits and _, not starting with a digit or "
            f"pg_, at most {IDENTIFIER_BYTES} of them."
        )
    if _role_exists(connection, name):
        raise UsageError(f"Role {name} exists already. Choose another name; `loader reader list` shows the readers.")
    password = secrets.token_urlsafe(24)
    statements = [*_creation(connection, name, password), *_admission(connection, name, schemas)]
    reader_url = url_of_role(url, name, password)
    if connection.execute(_MAY_CREATE_ROLES).fetchone() != (True,):
        return NewReader(reader_url, "".join(f"{statement.as_string(connection)};\n" for statement in statements))
    with connection.transaction():
        connection.execute(_LOCK)
        for statement in statements:
            connection.execute(statement)
    return NewReader(reader_url, "")


def list_readers(connection: psycopg.Connection) -> list[Reader]:
    """Return every reader, the oldest first."""
    return [
        Reader(
            name=name,
            sources=", ".join(sources) if all(sources) else "all",
            created_at=created_at,
            sessions=sessions,
            role="present" if exists else "missing",
        )
        for name, sources, created_at, exists, sessions in connection.execute(_READERS).fetchall()
    ]


def remove_reader(connection: psycopg.Connection, name: str) -> str:
    """Revoke the rights of a reader, end its sessions and drop its role.

    Args:
        connection: A connection in autocommit.
        name: The name of the role.

    Returns:
        SQL that removes the reader, for a role with the right to drop roles; empty if the reader is removed.

    Raises:
        UsageError: There is no such reader, or the reader owns something.
    """
    if connection.execute("select from raw.readers where name = %s", [name]).fetchone() is None:
        raise UsageError(f"There is no reader {name}. `loader reader list` shows the readers.")
    role = sql.Identifier(name)
    forget = sql.SQL("delete from raw.readers where name = {}").format(sql.Literal(name))
    if not _role_exists(connection, name):
        connection.execute(forget)
        return ""
    owned = [found for (found,) in connection.execute(_OWNS, {"role": role.as_string(connection)}).fetchall()]
    if owned:
        raise UsageError(
            f"Role {name} owns {', '.join(owned)}. Drop these objects or give them to another role, then run this "
            "command again."
        )
    statements = [
        forget,
        sql.SQL("select pg_terminate_backend(pid) from pg_stat_activity where usename = {}").format(sql.Literal(name)),
        sql.SQL("drop owned by {}").format(role),
        sql.SQL("drop role {}").format(role),
    ]
    may_drop = connection.execute(
        "select rolsuper or pg_has_role(%s, 'member with admin option') from pg_roles where rolname = current_user",
        [name],
    ).fetchone()
    if may_drop != (True,):
        return "".join(f"{statement.as_string(connection)};\n" for statement in statements)
    with connection.transaction():
        connection.execute(_LOCK)
        # Only members of a role may end its sessions. The creator of a role may grant the membership.
        connection.execute(sql.SQL("grant {} to current_user with inherit true").format(role))
        for statement in statements:
            connection.execute(statement)
    return ""


def default_reader_url(connection: psycopg.Connection, url: str, folder: LockedFolder) -> str:
    """Return the URL of the embedded database's own reader; the first call makes the reader.

    Args:
        connection: A connection in autocommit.
        url: The URL of the database.
        folder: The folder of the embedded database, which keeps the reader's password.
    """
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(hashtext(%s))", [DEFAULT_READER])
        password = folder.read("reader_password")
        exists = _role_exists(connection, DEFAULT_READER)
        if not password or not exists:
            password = secrets.token_urlsafe(24)
            statements = _creation(connection, DEFAULT_READER, password, alter=exists)
            for statement in [*statements, *_admission(connection, DEFAULT_READER, ())]:
                connection.execute(statement)
            folder.write("reader_password", password)
    return url_of_role(url, DEFAULT_READER, password)


def _role_exists(connection: psycopg.Connection, name: str) -> bool:
    return connection.execute("select from pg_roles where rolname = %s", [name]).fetchone() is not None


def _creation(connection: psycopg.Connection, name: str, password: str, *, alter: bool = False) -> list[sql.Composed]:
    """Return the statements that make a role; they hold a verifier, so no server and no log sees the password."""
    role, database = sql.Identifier(name), sql.Identifier(connection.info.dbname)
    verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    create = sql.SQL("alter role {} " if alter else "create role {} ")
    limits = sql.SQL("login password {} connection limit {}").format(sql.Literal(verifier), sql.Literal(_CONNECTIONS))
    return [
        create.format(role) + limits,
        *(
            sql.SQL("alter role {} in database {} set {} = {}").format(
                role, database, sql.Identifier(setting), sql.Literal(value)
            )
            for setting, value in _SESSION_SETTINGS.items()
        ),
        sql.SQL("grant connect on database {} to {}").format(database, role),
    ]


def _admission(connection: psycopg.Connection, name: str, schemas: Sequence[str]) -> list[sql.Composed]:
    """Return the statements that let a role read sources, with their present and later tables."""
    noted = [
        sql.SQL("insert into raw.readers (name, source) values ({}, {}) on conflict do nothing").format(
            sql.Literal(name), sql.Literal(schema)
        )
        for schema in schemas or [""]
    ]
    found = connection.execute("select schema_name from raw.sources order by id").fetchall()
    return noted + [
        sql.SQL("select raw.admit_readers({})").format(sql.Literal(schema))
        for (schema,) in found
        if not schemas or schema in schemas
    ]
