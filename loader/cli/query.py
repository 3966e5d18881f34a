"""Runs a person's SQL statements and yields their results; read-only, unless the caller allows changes."""

import difflib
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from loader.errors import UsageError
from loader.postgres.database import Database
from loader.postgres.statements import read_statement

# PostgreSQL has moments before the year 1 and after the year 9999, but Python has not.
_MOMENTS = ("date", "timestamp", "timestamptz")
# Types whose values stay in PostgreSQL's text form.
_TEXTS = ("bytea", "interval", "time", "timetz", "inet", "cidr")
_CHUNK_ROWS = 500
_TABLES = read_statement(__file__, "tables")


class Document(str):
    """A JSON document, as text in the form that the database prints."""

    __slots__ = ()


@dataclass
class Result:
    """The result of one statement.

    Attributes:
        columns: Names of the columns; None if the statement returns no rows.
        rows: The rows. They can be read once, and only before the next result.
        status: PostgreSQL's status of the statement, e.g. `INSERT 0 1`.
    """

    columns: list[str] | None
    rows: Iterable[tuple[Any, ...]] = ()
    status: str = ""


def run_query(database: Database, statement: str, *, write: bool = False) -> Iterator[Result]:
    """Run a statement and yield its result; with `write`, several statements yield a result each.

    Without `write`, only a single statement runs, in a read-only transaction that has already read. PostgreSQL does not
    let a statement make such a transaction writable again.

    Args:
        database: An open database.
        statement: The SQL text.
        write: Allow changes of the database. Several statements are one transaction, which is committed.

    Raises:
        UsageError: The database refuses the statement.
    """
    with database.connect(autocommit=write) as connection:
        _register_loaders(connection)
        with _explained(database):
            for result in _run_writing(connection, statement) if write else _run_reading(connection, statement):
                yield replace(result, rows=_read(database, result.rows))


def _read(database: Database, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield rows, and explain an error, because a statement may fail after some rows."""
    with _explained(database):
        yield from rows


@contextmanager
def _explained(database: Database) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise _refused(database, error) from None


def _run_reading(connection: psycopg.Connection, statement: str) -> Iterator[Result]:
    connection.read_only = True
    connection.execute("select 1")
    names = _describe(connection, statement)
    if not names:
        yield Result(None, status=connection.execute(statement.encode()).statusmessage or "")
        return
    with connection.cursor() as cursor:
        size = _CHUNK_ROWS if psycopg.capabilities.has_stream_chunked() else 1
        rows = cast("Generator[tuple[Any, ...]]", cursor.stream(statement.encode(), size=size))
        # Closing the stream stops the query, so that unread rows are not fetched.
        with closing(rows):
            yield Result(names, rows)


def _run_writing(connection: psycopg.Connection, statement: str) -> Iterator[Result]:
    with connection.cursor() as cursor:
        cursor.execute(statement.encode())
        for _ in cursor.results():
            if cursor.description is None:
                yield Result(None, status=cursor.statusmessage or "")
            else:
                yield Result([column.name for column in cursor.description], cursor)


def _describe(connection: psycopg.Connection, statement: str) -> list[str]:
    """Return the columns of a single statement, which is parsed but not run.

    Raises:
        psycopg.Error: The statement cannot be parsed, or there are several statements.
    """
    encoding = connection.info.encoding
    names: list[str] = []
    for answer in (connection.pgconn.prepare(b"", statement.encode()), connection.pgconn.describe_prepared(b"")):
        if answer.status != ExecStatus.COMMAND_OK:
            raise errors.error_from_result(answer, encoding)
        names = _names(answer, encoding)
    return names


def _names(answer: PGresult, encoding: str) -> list[str]:
    return [(answer.fname(i) or b"").decode(encoding) for i in range(answer.nfields)]


def _register_loaders(connection: psycopg.Connection) -> None:
    """Register loaders that give values exactly as the database has them, as text where Python types are not exact."""
    types = connection.adapters.types

    class DocumentLoader(psycopg.types.string.TextLoader):
        def load(self, data: Any) -> Document:
            return Document(bytes(data).decode())

    for name in ("json", "jsonb"):
        connection.adapters.register_loader(name, DocumentLoader)
    for name in _TEXTS:
        connection.adapters.register_loader(name, psycopg.types.string.TextLoader)
    for name in _MOMENTS:
        plain = connection.adapters.get_loader(types[name].oid, psycopg.pq.Format.TEXT)
        assert plain is not None  # noqa: S101 - psycopg has one for each of these types
        connection.adapters.register_loader(name, _tolerant(plain))


def _tolerant(plain: type[psycopg.abc.Loader]) -> type[psycopg.adapt.Loader]:
    """Return a loader for a type of moments that gives PostgreSQL's text for moments that Python cannot hold."""

    class TolerantLoader(psycopg.adapt.Loader):
        def __init__(self, oid: int, context: psycopg.abc.AdaptContext | None = None) -> None:
            super().__init__(oid, context)
            self._plain = plain(oid, context)

        def load(self, data: Any) -> Any:
            try:
                return self._plain.load(data)
            except psycopg.DataError:
                return bytes(data).decode()

    return TolerantLoader


def _refused(database: Database, error: psycopg.Error) -> UsageError:
    """Return an error for a person about a refused statement, with a hint for some errors."""
    lines = [f"The database refuses the query: {str(error).strip()}"]
    if isinstance(error, errors.UndefinedTable):
        lines.append(_suggest_table(database, str(error)))
    elif isinstance(error, errors.ReadOnlySqlTransaction):
        lines.append("A query may only read. With --write a statement may change the database.")
    elif isinstance(error, errors.SyntaxError) and "multiple commands" in str(error):
        lines = ["A query is one statement, and these are several. With --write, all run and each shows its result."]
    return UsageError("\n".join(lines))


def _suggest_table(database: Database, message: str) -> str:
    """Return a hint that lists the tables with names similar to the missing table."""
    found = re.search(r'"([^"]+)"', message)
    missing = found[1] if found else ""
    with database.connect() as connection:
        tables = [row[0] for row in connection.execute(_TABLES)]
    same_name = [table for table in tables if table.partition(".")[2] == missing.rpartition(".")[2]]
    if same_name:
        return f"Tables with this name and a schema: {' and '.join(same_name)}."
    close = difflib.get_close_matches(missing, tables, n=3) or [
        table for table in tables if table.partition(".")[2] in difflib.get_close_matches(missing, _bare(tables))
    ]
    if close:
        return f"Similar names: {', '.join(close)}."
    schemas = sorted({table.partition(".")[0] for table in tables} - {"raw", "public"})
    example = f", such as {schemas[0]}.email_opened" if schemas else ""
    return f"Write the name of a table with the schema of its source{example}. `loader status` lists the tables."


def _bare(tables: Iterable[str]) -> list[str]:
    return [table.partition(".")[2] for table in tables]
