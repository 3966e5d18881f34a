"""Readers: their rights, their limits, and how they are added and removed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import Database, open_database
from loader.postgres.embedded import EmbeddedServer
from loader.raw.readers import DEFAULT_READER, add_reader, list_readers, remove_reader
from loader.settings import Settings
from loader.transform.dbt import transform
from tests.conftest import Loader, create_database, drop_database, loader_here, open_settings
from tests.integration.postgres.test_embedded import open_folder
from tests.support.factories import insert_event, insert_payload
from tests.support.own_server import copy_cluster


@pytest.fixture
def reader_name(settings: Settings) -> Iterator[str]:
    """Return the name of a role for one test, and drop the role at the end; roles belong to the whole server."""
    name = f"reader_of_{settings.database_url.rsplit('/', 1)[1]}"
    yield name
    forget_role(settings.database_url, name)


def forget_role(url: str, name: str) -> None:
    """Drop a role, if it exists."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("select from pg_roles where rolname = %s", [name]).fetchone() is not None:
            connection.execute(f'drop owned by "{name}"; drop role "{name}"')


@contextmanager
def reading(url: str) -> Iterator[psycopg.Connection]:
    """Open a session of a reader."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def count(connection: psycopg.Connection, table: str) -> int:
    """Return the number of rows that a reader sees."""
    row = connection.execute(f"select count(*) from {table}").fetchone()
    assert row is not None
    return int(row[0])


def test_c2_a_reader_reads_present_and_later_tables_of_present_and_later_sources(
    small: Database, small_settings: Settings
) -> None:
    """This includes tables that a full refresh rebuilds and tables made again after a drop, without another grant."""
    names = [f"{kind}_of_{small_settings.database_url.rsplit('/', 1)[1]}" for kind in ("all", "one")]
    try:
        with small.connect(autocommit=True) as connection:
            every = add_reader(connection, small.url, names[0]).url
            one = add_reader(connection, small.url, names[1], ["iterable"]).url
            connection.execute("insert into raw.sources (name, schema_name) values ('Later', 'later')")
            insert_event(connection, "email_opened", "e1")
            insert_event(connection, "email_opened", "e2", source="later")
            connection.execute("drop table iterable.email_delivered")
        transform(small, small_settings)
        transform(small, small_settings, full_refresh=True)
        with reading(every) as reader:
            assert count(reader, "iterable.email_opened") == count(reader, "later.email_opened") == 1
            assert count(reader, "later.tracks") == 1
            assert count(reader, "iterable.email_delivered") == 0
            assert reader.execute("show search_path").fetchone() == ("iterable, later",)
        with reading(one) as reader:
            assert count(reader, "email_opened") == 1
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                count(reader, "later.email_opened")
    finally:
        for name in names:
            forget_role(small.url, name)


def test_c2_a_reader_can_change_nothing_and_never_sees_raw(served: Database) -> None:
    """Rights refuse a session that asks for a writing transaction, not only a setting."""
    name = f"reader_of_{served.url.rsplit('/', 1)[1]}"
    try:
        with served.connect(autocommit=True) as connection:
            url = add_reader(connection, served.url, name).url
            schema = connection.execute("select rolconnlimit from pg_roles where rolname = %s", [name]).fetchone()
            assert schema == (20,)
        with reading(url) as reader:
            settings = ("default_transaction_read_only", "statement_timeout", "idle_in_transaction_session_timeout")
            shown = [reader.execute(f"show {setting}").fetchone() for setting in settings]
            assert shown == [("on",), ("5min",), ("10min",)]
            reader.execute("set default_transaction_read_only = off")
            for statement in (
                "select * from raw.events",
                "select * from raw.write_keys",
                "select * from raw.conservation",
                "insert into iterable.tracks (id) values ('x')",
                "delete from iterable.tracks",
                "drop table iterable.tracks",
                "create table iterable.mine (id text)",
                "create schema mine",
                "create role more",
                "copy (select 1) to program 'true'",
                "select raw.admit_readers('raw')",
                "set role loader",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    reader.execute(statement)
    finally:
        forget_role(served.url, name)


def test_c2_the_commands_make_list_and_remove_a_reader(
    run_loader: Loader, settings: Settings, reader_name: str
) -> None:
    """The URL stands alone on stdout and is shown once. A removed reader cannot connect."""
    made = run_loader("reader", "add", reader_name, "--source", "Iterable")
    assert made.returncode == 0
    (url,) = made.stdout.splitlines()
    assert "shown only now" in made.stderr
    assert url.split(":")[2].split("@")[0] not in made.stderr
    with reading(url) as session:
        assert reader_name in run_loader("reader", "list").stdout
        again = run_loader("reader", "add", reader_name)
        assert again.returncode == 2
        assert f"Role {reader_name} exists already" in again.stderr
        assert run_loader("reader", "remove", reader_name).returncode == 0
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    assert reader_name not in run_loader("reader", "list").stdout
    assert run_loader("reader", "remove", reader_name).returncode == 2
    assert run_loader("reader", "add", "No Name").returncode == 2


def test_c2_sql_status_and_url_work_for_a_reader(served: Database, served_settings: Settings) -> None:
    """They show the objects that a reader may see. Other commands name the role whose URL they need."""
    name = f"reader_of_{served.url.rsplit('/', 1)[1]}"
    try:
        with served.connect(autocommit=True) as connection:
            url = add_reader(connection, served.url, name).url
            insert_payload(connection, "e1", {"type": "track"})
        run = loader_here(open_settings(url, served_settings.home))
        assert run("sql", "select count(*) from email_opened", "--format", "csv").stdout.splitlines()[1] == "0"
        status = run("status")
        assert status.returncode == 0
        assert "email_opened" in status.stdout
        assert "reads tables only" in status.stderr
        assert run("url").stdout.strip() == url
        refused = run("key", "list")
        assert refused.returncode == 1
        assert "A reader's URL is for `loader sql`" in refused.stderr
    finally:
        forget_role(served.url, name)


def test_c2_a_role_that_may_not_create_roles_gets_the_sql(server: str, settings: Settings, reader_name: str) -> None:
    """An administrator runs the SQL. Then the URL that was printed works, for later tables too."""
    owner, name = f"owner_{reader_name}", f"plain_{settings.database_url.rsplit('/', 1)[1]}"
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f"create role {owner} login password 'secret'")
    try:
        url = create_database(server, name)
        with psycopg.connect(server, autocommit=True) as administrator:
            administrator.execute(f"alter database {name} owner to {owner}")
        plain = url.replace(url.split("//")[1].split("@")[0], f"{owner}:secret")
        with open_database(open_settings(plain, settings.home), migrate_behind=True) as database:
            with database.connect(autocommit=True) as connection:
                connection.execute("insert into raw.sources (name, schema_name) values ('Iterable', 'iterable')")
                connection.execute("create schema iterable; create table iterable.here (id text)")
                made = add_reader(connection, plain, reader_name)
                assert connection.execute("select from raw.readers").fetchall() == []
            with psycopg.connect(url, autocommit=True) as administrator:
                administrator.execute(made.statements)
            with database.connect(autocommit=True) as connection:
                connection.execute("create table iterable.later (id text)")
                with reading(made.url) as reader:
                    assert count(reader, "here") == count(reader, "later") == 0
                assert [found.name for found in list_readers(connection)] == [reader_name]
                statements = remove_reader(connection, reader_name)
            with psycopg.connect(url, autocommit=True) as administrator:
                administrator.execute(statements)
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(made.url)
    finally:
        drop_database(server, name)
        with psycopg.connect(server, autocommit=True) as administrator:
            administrator.execute(f"drop role {owner}")


def test_c2_the_embedded_database_hands_out_the_url_of_a_reader(cluster_template: Path) -> None:
    """`loader url` prints the same URL each time. `--owner` and `--env` give the loader's role."""
    with open_folder() as home:
        copy_cluster(cluster_template, home)
        run = loader_here(open_settings("", home))
        first = run("url")
        assert first.returncode == 0, first.stderr
        assert f"//{DEFAULT_READER}:" in first.stdout
        assert run("url").stdout == first.stdout
        owner = run("url", "--owner").stdout.strip()
        assert "//loader:" in owner
        assert "export PGUSER=loader\n" in run("url", "--env").stdout
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute(f"drop owned by {DEFAULT_READER}; drop role {DEFAULT_READER}")
        with reading(run("url").stdout.strip()) as reader:
            assert reader.execute("select current_user").fetchone() == (DEFAULT_READER,)
        found = (home / "embedded/reader_password").stat()
        assert found.st_mode & 0o777 == 0o600
        EmbeddedServer(home).stop()
