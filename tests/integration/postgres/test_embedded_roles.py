"""The roles of the embedded PostgreSQL, and the upgrade of an older cluster, which has one role."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest

from loader.postgres.database import open_database
from loader.postgres.embedded import EmbeddedServer
from loader.postgres.embedded_cluster import ENVIRONMENT, Cluster
from tests.conftest import open_settings
from tests.integration.postgres.test_embedded import AS_ROOT, is_alive, keepers, kill_hard, open_folder, postmaster
from tests.support.own_server import copy_cluster
from tests.support.waiting import can_connect, wait_until

PASSWORD = "known to a BI tool"

# Objects that people create in a warehouse, as the role with all rights.
USED = """
    create role analyst login password 'secret';
    create role "Odd ""name" login;
    create schema iterable;
    create type iterable.mood as enum ('good', 'bad');
    create domain iterable.share as numeric check (value between 0 and 1);
    create table iterable.events (
        id bigint generated always as identity primary key, mood iterable.mood, part iterable.share
    );
    insert into iterable.events (mood, part) values ('good', 0.5), ('bad', 1);
    create table iterable.split (id bigint, at date) partition by range (at);
    create table iterable.split_2026 partition of iterable.split for values from ('2026-01-01') to ('2027-01-01');
    create sequence iterable.numbers;
    create view iterable.moods as select mood, count(*) as events from iterable.events group by mood;
    create materialized view iterable.kept as select mood from iterable.events;
    create function iterable.twice(bigint) returns bigint language sql as 'select 2 * $1';
    create procedure iterable.nothing() language sql as 'select 1';
    create aggregate iterable.total(numeric) (sfunc = numeric_add, stype = numeric);
    create statistics iterable.related (dependencies) on id, mood from iterable.events;
    create schema theirs authorization analyst;
    create table theirs.notes as select 7 as note;
    alter table theirs.notes owner to analyst;
    grant usage on schema iterable to analyst, "Odd ""name";
    grant select on iterable.events, iterable.moods to analyst with grant option;
    grant select (mood) on iterable.events to "Odd ""name";
    alter default privileges in schema iterable grant select on tables to analyst;
    alter default privileges grant usage on schemas to analyst;
    alter role loader in database warehouse set search_path = iterable, public;
    comment on table iterable.events is 'of the readers';
    select lo_from_bytea(4711, 'large');
"""
# Objects of people that stay with the superuser.
NOT_OURS = """
    select pg_describe_object(classid, objid, 0)
    from (
        select 'pg_class'::regclass as classid, oid as objid, relowner as owner from pg_class
        union all select 'pg_type'::regclass, oid, typowner from pg_type
        union all select 'pg_proc'::regclass, oid, proowner from pg_proc
        union all select 'pg_namespace'::regclass, oid, nspowner from pg_namespace
        union all select 'pg_statistic_ext'::regclass, oid, stxowner from pg_statistic_ext
        union all select 'pg_largeobject'::regclass, oid, lomowner from pg_largeobject_metadata
    ) as owned
    where owner = 10 and (objid >= 16384 or classid = 'pg_largeobject'::regclass)
    union all
    select datname from pg_database where datdba = 10 and datname not in ('postgres', 'template0', 'template1')
"""
GRANTED = """
    select
        (select relacl::text from pg_class where oid = 'iterable.events'::regclass),
        (select relacl::text from pg_class where oid = 'iterable.moods'::regclass),
        (select attacl::text from pg_attribute where attrelid = 'iterable.events'::regclass and attname = 'mood'),
        (select nspacl::text from pg_namespace where nspname = 'iterable'),
        obj_description('iterable.events'::regclass),
        current_setting('search_path')
"""


def make_old_cluster(home: Path) -> EmbeddedServer:
    """Make a cluster of the first version, whose role `loader` is the superuser that initdb creates."""
    server = EmbeddedServer(home)
    server.folder.create()
    server.folder.write("password", PASSWORD)
    cluster = Cluster(server.folder)
    account = cluster._find_account()
    programs = cluster._find_programs(account)
    (home / "embedded/initdb").write_text(PASSWORD)
    cluster.data.mkdir(mode=0o700)
    if account:
        os.chown(cluster.data, account.uid, account.gid)
        os.chown(home / "embedded/initdb", account.uid, account.gid)
    user = {"user": account.uid, "group": account.gid, "extra_groups": []} if AS_ROOT and account else {}
    initdb = [programs / "initdb", f"--pgdata={cluster.data}", "--username=loader", f"--pwfile={home}/embedded/initdb"]
    initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
    initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", env=ENVIRONMENT, **user)
    single = [programs / "postgres", "--single", "-D", cluster.data, "postgres"]
    create = b"create database warehouse;\ncreate database other;\n"
    subprocess.run(single, check=True, capture_output=True, cwd="/", env=ENVIRONMENT, input=create, **user)
    (home / "embedded/initdb").unlink()
    return server


def start_old_server(server: EmbeddedServer) -> str:
    """Start that cluster's server without the upgrade, and return the URL that people used."""
    wanted = server.folder.read("keeper_password")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cluster, "_separate_roles", lambda *_: server.folder.write("keeper_password", "none"))
        patch.setattr(EmbeddedServer, "_ask", lambda _: "ready")
        url = server.acquire()
    assert wanted == ""
    (server.folder.path / "keeper_password").unlink()
    server.release()
    wait_until(lambda: can_connect(url), "the old server")
    return url


Grants = tuple[object, ...]


@pytest.fixture(scope="module")
def old_cluster() -> Iterator[tuple[Path, Grants]]:
    """Return the home of a used and stopped cluster of the first version, and the grants on its objects."""
    with open_folder() as home:
        server = make_old_cluster(home)
        url = start_old_server(server)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(USED)
        with psycopg.connect(url.replace("/warehouse", "/other"), autocommit=True) as connection:
            connection.execute("create table mine as select 1 as one")
        grants = read_grants(url)
        server.stop()
        (home / "embedded/port").unlink()
        yield home, grants


@pytest.fixture
def old(old_cluster: tuple[Path, Grants]) -> Iterator[tuple[EmbeddedServer, Grants]]:
    """Return a copy of that cluster, and the grants."""
    original, grants = old_cluster
    with open_folder() as home:
        copy_cluster(original, home)
        yield EmbeddedServer(home), grants
        for keeper in keepers(home):
            kill_hard(keeper.pid)


@pytest.fixture
def new(cluster_template: Path) -> Iterator[EmbeddedServer]:
    """Return a cluster of this version."""
    with open_folder() as home:
        copy_cluster(cluster_template, home)
        server = EmbeddedServer(home)
        yield server
        server.release()


def check_brought_over(url: str, before: Grants) -> None:
    """Check that the URL's role owns everything and is not a superuser."""
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        assert connection.execute(
            "select rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication from pg_roles"
            " where rolname = current_user"
        ).fetchone() == (False, True, False, False, False)
        assert connection.execute(NOT_OURS).fetchall() == []
        assert connection.execute(GRANTED).fetchone() == before
        assert connection.execute("select mood::text, part from events order by id").fetchall() == [
            ("good", 0.5),
            ("bad", 1),
        ]
        assert connection.execute("select note from theirs.notes").fetchone() == (7,)
        assert connection.execute("select convert_from(lo_get(4711), 'UTF8')").fetchone() == ("large",)
        connection.execute("insert into events (mood) values ('good')")
        connection.execute("create table iterable.later (id text); create schema later; create role further")
        connection.execute("refresh materialized view iterable.kept; alter table iterable.events add column more text")
        assert connection.execute(
            "select has_table_privilege('analyst', 'iterable.later', 'select'),"
            " has_schema_privilege('analyst', 'later', 'usage')"
        ).fetchone() == (True, True)
        connection.execute("alter role analyst connection limit 3; drop role further")
        for forbidden in (
            "copy (select 1) to program 'true'",
            "create role more superuser",
            "select pg_read_file('x')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)
    with psycopg.connect(url.replace("/warehouse", "/other"), autocommit=True) as connection:
        assert connection.execute(NOT_OURS).fetchall() == []
        connection.execute("insert into mine values (2)")


def read_grants(url: str) -> Grants:
    """Return the grants on objects of people."""
    with psycopg.connect(url) as connection:
        row = connection.execute(GRANTED).fetchone()
    assert row is not None
    return row


def test_c2_a_new_cluster_hands_out_no_superuser(new: EmbeddedServer) -> None:
    """The loader's role owns the database and may create roles, and no more. The superuser's secret is kept."""
    with psycopg.connect(new.acquire(), autocommit=True) as connection:
        assert connection.execute(
            "select rolsuper, rolcreaterole, rolcreatedb from pg_roles where rolname = current_user"
        ).fetchone() == (False, True, False)
        assert connection.execute(
            "select pg_get_userbyid(datdba) from pg_database where datname = 'warehouse'"
        ).fetchone() == ("loader",)
        for forbidden in ("copy (select 1) to program 'true'", "alter role loader_keeper password 'x'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)
    found = (new.home / "embedded/keeper_password").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, os.geteuid())
    with new.connect("postgres", as_keeper=True) as connection:
        assert connection.execute("show is_superuser").fetchone() == ("on",)


def test_c2_a_running_server_of_the_first_version_is_upgraded(old: tuple[EmbeddedServer, Grants]) -> None:
    """The URL, data, views, grants and default privileges stay. A new keeper replaces the old keeper."""
    server, before = old
    url = start_old_server(server)
    (first,) = keepers(server.home)
    assert server.acquire() == url
    check_brought_over(url, before)
    assert not is_alive(first.pid)
    assert len(keepers(server.home)) == 1
    with open_database(open_settings("", server.home).model_copy(update={"embedded_idle": 600.0})) as database:
        assert database.url == url
    server.release()


# The upgrade has two steps for the roles, and one for each database.
STEPS = 2 + len(("postgres", "template1", "warehouse", "other"))


def kill_after_steps(steps: Iterable[int], server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Start a stopped cluster again and again, and return its URL. Each start but the last dies after some steps."""
    run_single = Cluster._run_single
    done = limit = 0

    def run_or_die(cluster: Cluster, *arguments: object, **options: object) -> str:
        nonlocal done
        if done == limit:
            raise KeyboardInterrupt
        done += 1
        return run_single(cluster, *arguments, **options)

    monkeypatch.setattr(Cluster, "_run_single", run_or_die)
    for steps_done in steps:
        done, limit = 0, steps_done
        with pytest.raises(KeyboardInterrupt):
            server.acquire()
    done, limit = 0, STEPS
    url = server.acquire()
    assert done == STEPS
    assert PASSWORD in unquote(url)
    return url


@pytest.mark.heavy
def test_c2_the_next_start_completes_a_killed_upgrade(
    old: tuple[EmbeddedServer, Grants], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill between the first steps, and another before the last step, the next start does the others."""
    server, before = old
    check_brought_over(kill_after_steps((1, STEPS - 1), server, monkeypatch), before)
    server.release()


@pytest.mark.heavy
def test_c2_the_next_start_completes_an_upgrade_killed_at_any_step(
    old: tuple[EmbeddedServer, Grants], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill before, between or after any two steps, the next start does the remaining steps."""
    server, before = old
    check_brought_over(kill_after_steps(range(STEPS), server, monkeypatch), before)
    server.release()


def test_c2_an_older_cluster_restored_over_a_newer_cluster_is_upgraded(old: tuple[EmbeddedServer, Grants]) -> None:
    """A backup of an older version lies in a folder with the newer secret. The superuser shows the older version."""
    server, before = old
    server.folder.write("keeper_password", "of another cluster")
    check_brought_over(server.acquire(), before)
    server.release()


def test_c2_a_lost_secret_of_the_superuser_is_replaced(new: EmbeddedServer) -> None:
    """The next start gives the superuser another password, and the keeper continues."""
    url = new.acquire()
    pid = postmaster(new.home)
    (new.home / "embedded/keeper_password").unlink()
    assert new.acquire() == url
    assert postmaster(new.home) != pid
    new.connect("postgres", as_keeper=True).close()
