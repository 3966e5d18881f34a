"""Finds and opens the database, checks its version, and migrates its raw schema.

`DATABASE_URL` names the database; without that variable, the embedded PostgreSQL is started. An opened database has a
supported version of PostgreSQL and the raw schema of this version of the loader. The transaction ids stored in the
schema belong to the database's own cluster.

The loader uses two APIs. SQLAlchemy Core is the control plane: sources, write keys, status, the lists of loads and of
the quarantine. psycopg is the data path: COPY, the asynchronous connection, workers, and all that moves in the
transaction of the rows. Only this module uses both: it opens either, and it turns the errors of both into one type.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from loader.errors import DatabaseError, SchemaBehindError, UsageError, without_values
from loader.postgres.connection import NO_TIMEOUTS, connect, set_session
from loader.postgres.embedded import EmbeddedServer
from loader.postgres.lock_holders import LOCK_NOT_AVAILABLE, lock_error, name_lock_holders
from loader.settings import Settings

# Every safe cast uses `pg_input_is_valid`, which PostgreSQL 16 introduced.
MINIMUM_VERSION = 16

# A migration waits this long for a lock, because landing and readers queue behind it. After a pause it tries again.
_MIGRATION_LOCK_WAIT = "200ms"
_MIGRATION_TRIES = 12
_MIGRATION_PAUSE_SECONDS = 5.0
# The advisory lock that a migration holds, so that two commands that start together do not both migrate.
_MIGRATION_LOCK = 7_226_010_001


@dataclass(frozen=True)
class Database:
    """An open database.

    Attributes:
        url: The connection URL, in the form that every PostgreSQL client accepts.
        engine: SQLAlchemy's engine for the URL.
        embedded: Whether the server is the embedded PostgreSQL.
        lock_wait: Seconds that a statement waits for a lock of another session.
        is_reader: Whether the role reads tables of sources and cannot use the raw schema.
    """

    url: str
    engine: Engine
    embedded: bool
    lock_wait: float
    is_reader: bool = False

    def connect(self, *, autocommit: bool = False) -> psycopg.Connection:
        """Open a psycopg connection, for the data path.

        Args:
            autocommit: Commit each statement by itself.

        Raises:
            DatabaseError: The database does not answer.
        """
        return connect(self.url, autocommit=autocommit)

    @contextmanager
    def name_lock_holders(self) -> Iterator[None]:
        """Replace the error of a lock timeout in the block by an error that names the blocking sessions.

        Raises:
            DatabaseError: A statement waited too long for a lock.
        """
        try:
            yield
        except (psycopg.Error, DBAPIError) as error:
            if _is_about_lock(error):
                raise self.lock_error("Nothing was done") from None
            raise

    def lock_error(self, outcome: str) -> DatabaseError:
        """Return an error that names the sessions that hold locks.

        Args:
            outcome: The consequence for the work, as the beginning of a sentence.
        """
        with self.connect(autocommit=True) as connection:
            return lock_error(connection, outcome)

    @contextmanager
    def autocommit(self) -> Iterator[psycopg.Connection]:
        """Open a psycopg connection that commits every statement, for the data path of a command.

        Raises:
            DatabaseError: Another session holds a lock that a statement of the block needs.
        """
        with self.connect(autocommit=True) as connection, name_lock_holders(connection, "The command stopped"):
            set_session(connection, self.lock_wait)
            yield connection

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open a SQLAlchemy connection, for the control plane, in a transaction that commits at the end of the block.

        Raises:
            DatabaseError: Another session holds a lock that a statement of the block needs.
        """
        with self.name_lock_holders(), self.engine.begin() as connection:
            limits = f"set local lock_timeout = '{self.lock_wait * 1000:.0f}ms'"
            if not self.is_reader:
                # A reader keeps the time limit of its role.
                limits += "; set local statement_timeout = 0"
            connection.exec_driver_sql(limits)
            yield connection


@contextmanager
def open_database(settings: Settings, *, migrate_behind: bool = False, for_reader: bool = False) -> Iterator[Database]:
    """Open the database that the settings name, start it if it is the embedded one, and check it.

    An error of either database API that leaves the block becomes a `DatabaseError`.

    Args:
        settings: The process's settings.
        migrate_behind: Migrate an older raw schema instead of refusing it. The embedded database is always migrated,
            because it has no administrator.
        for_reader: Accept a role that cannot use the raw schema.

    Raises:
        DatabaseError: The database does not answer, is too old, refuses the role, or (`SchemaBehindError`) its raw
            schema is too old; or a statement of the block failed.
        UsageError: `DATABASE_URL` is not a PostgreSQL URL.
    """
    try:
        with _open(settings, migrate_behind=migrate_behind, for_reader=for_reader) as database:
            yield database
    except (psycopg.Error, DBAPIError) as error:
        raise DatabaseError(f"The database failed: {without_values(_cause(error))}") from None


@contextmanager
def _open(settings: Settings, *, migrate_behind: bool, for_reader: bool) -> Iterator[Database]:
    if settings.database_url:
        with _engine(libpq_url(settings.database_url), settings, embedded=False) as database:
            try:
                _prepare(database, migrate_behind=migrate_behind)
            except psycopg.errors.InsufficientPrivilege as error:
                if not for_reader:
                    raise _refused(database, error) from None
                database = replace(database, is_reader=True)  # noqa: PLW2901 - the same database with fewer rights
            yield database
        return
    server = EmbeddedServer(settings.home, port=settings.embedded_port, idle=settings.embedded_idle)
    url = server.acquire()
    try:
        with _engine(url, settings, embedded=True) as database:
            _prepare(database, migrate_behind=True)
            yield database
    finally:
        server.release()


def libpq_url(url: str, setting: str = "DATABASE_URL") -> str:
    """Return a database URL in libpq's form, without a dialect of SQLAlchemy such as `+psycopg`.

    Args:
        url: The URL.
        setting: The variable that has the URL, for an error.

    Raises:
        UsageError: The URL is not a PostgreSQL URL.
    """
    problem = f"{setting} must look like postgresql://user:password@host:5432/database"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UsageError(f"{problem}.") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise UsageError(f"{problem}; it starts with {parsed.drivername}://.")
    return _render(parsed.set(drivername="postgresql"))


def url_of_role(url: str, role: str, password: str) -> str:
    """Return a database URL with another role and its password."""
    return _render(make_url(url).set(drivername="postgresql", username=role, password=password))


def _render(url: URL) -> str:
    """Return a URL as text; libpq refuses the spaces that SQLAlchemy leaves in a user name or a password."""
    return url.render_as_string(hide_password=False).replace(" ", "%20")


def connection_environment(url: str) -> dict[str, str]:
    """Return the libpq environment variables for a connection URL; dbt's profile and psql read them."""
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
        "sslmode": "PGSSLMODE",
        "sslrootcert": "PGSSLROOTCERT",
        "sslcert": "PGSSLCERT",
        "sslkey": "PGSSLKEY",
    }
    parameters = conninfo_to_dict(url)
    return {names[key]: str(value) for key, value in parameters.items() if key in names}


def bundled(folder: str) -> Path:
    """Return the path of a folder that ships with the package: inside the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / folder
    return installed if installed.is_dir() else package.parent / folder


def migrate(engine: Engine) -> tuple[str | None, str]:
    """Migrate the raw schema to this version's revision, in one transaction.

    A migration that waits too long for a lock is repeated after a pause, in which the sessions behind it go on.

    Returns:
        The revision of before (None without a raw schema) and the present revision.

    Raises:
        DatabaseError: The schema is newer than this version of the loader, or another session holds a needed lock.
    """
    for attempt in range(1, _MIGRATION_TRIES + 1):
        try:
            return _migrate_once(engine)
        except (psycopg.Error, DBAPIError) as error:
            if not _is_about_lock(error):
                raise
        if attempt < _MIGRATION_TRIES:
            time.sleep(_MIGRATION_PAUSE_SECONDS)  # the server does not report the end of another transaction
    with engine.connect() as connection:
        raise lock_error(_driver_connection(connection), "The raw schema is as it was")


def _driver_connection(connection: Connection) -> psycopg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - the engine has only this dialect
    return driver


def _cause(error: psycopg.Error | DBAPIError) -> BaseException | None:
    """Return the error of psycopg, which SQLAlchemy may have wrapped."""
    return error.orig if isinstance(error, DBAPIError) else error


def _is_about_lock(error: psycopg.Error | DBAPIError) -> bool:
    return getattr(_cause(error), "sqlstate", None) == LOCK_NOT_AVAILABLE


def _migrate_once(engine: Engine) -> tuple[str | None, str]:
    # The import takes 0.1 s, and only a migration needs it.
    import alembic.command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(bundled("migrations")))
    with engine.begin() as connection:
        connection.exec_driver_sql(NO_TIMEOUTS)
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        connection.execute(text(f"set local lock_timeout = '{_MIGRATION_LOCK_WAIT}'"))
        connection.execute(text("create schema if not exists raw"))
        before = _read_revision(_driver_connection(connection))
        _refuse_newer(before)
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")
        return before, _revisions()[-1]


def check_version(number: int) -> None:
    """Refuse a PostgreSQL that is too old.

    Args:
        number: `server_version_num`, e.g. 150004 for 15.4.

    Raises:
        DatabaseError: The server is older than `MINIMUM_VERSION`.
    """
    if number // 10000 < MINIMUM_VERSION:
        raise DatabaseError(
            f"The database is PostgreSQL {number // 10000}; {MINIMUM_VERSION} or newer is needed. Point DATABASE_URL "
            "at a newer server, or unset it to use the embedded PostgreSQL 18."
        )


def check_database(connection: psycopg.Connection) -> None:
    """Check the version and the raw schema of a database, and replace transaction ids of another cluster.

    A restored dump contains transaction ids of the cluster it was made in.

    Args:
        connection: A connection in autocommit.

    Raises:
        DatabaseError: PostgreSQL is too old, or the raw schema is newer than this version of the loader.
        SchemaBehindError: The raw schema is older, or missing.
    """
    check_version(connection.info.server_version)
    revision = _read_revision(connection)
    _refuse_newer(revision)
    head = _revisions()[-1]
    if revision != head:
        state = "does not exist yet" if revision is None else f"is at revision {revision}, behind {head}"
        raise SchemaBehindError(f"The raw schema {state}. Run `loader migrate`, then this command again.")
    with name_lock_holders(connection, "Nothing was done"):
        connection.execute("select raw.adopt_cluster()")


def _prepare(database: Database, *, migrate_behind: bool) -> None:
    with database.connect(autocommit=True) as connection:
        before = _read_revision(connection)
        try:
            check_database(connection)
        except SchemaBehindError:
            if not migrate_behind:
                raise
            migrate(database.engine)
            check_database(connection)
    if database.embedded and before is None:
        # New users need this source first. In a database of their own, they add sources themselves.
        with database.begin() as connection:
            connection.execute(
                text(
                    "insert into raw.sources (name, schema_name) values ('Iterable', 'iterable') on conflict do nothing"
                )
            )


def _refused(database: Database, error: psycopg.Error) -> DatabaseError:
    role = conninfo_to_dict(database.url).get("user", "of DATABASE_URL")
    return DatabaseError(
        f"The role {role} may not use the raw schema: {error.diag.message_primary}. Set DATABASE_URL to the URL of the "
        "loader's role. A reader's URL is for `loader sql`, `loader status` and `loader url`."
    )


@contextmanager
def _engine(url: str, settings: Settings, *, embedded: bool) -> Iterator[Database]:
    engine = create_engine("postgresql+psycopg://", poolclass=NullPool, creator=lambda: connect(url))
    try:
        yield Database(url=url, engine=engine, embedded=embedded, lock_wait=settings.lock_wait)
    finally:
        engine.dispose()


def _read_revision(connection: psycopg.Connection) -> str | None:
    there = connection.execute("select to_regclass('raw.alembic_version') is not null").fetchone()
    if there != (True,):
        return None
    row = connection.execute("select version_num from raw.alembic_version").fetchone()
    return str(row[0]) if row else None


def _revisions() -> list[str]:
    """Return the revisions of all migrations, the oldest first: the numbers at the beginning of the files' names."""
    revisions = sorted(file.stem.split("_")[0] for file in (bundled("migrations") / "versions").glob("*.sql"))
    if not revisions:
        raise DatabaseError("The migrations are missing from the installation. Install the package again.")
    return revisions


def _refuse_newer(revision: str | None) -> None:
    if revision is not None and revision not in _revisions():
        raise DatabaseError(
            f"The raw schema is at revision {revision}, which this version of the loader does not know. A newer "
            "version has migrated the schema. Upgrade this installation."
        )
