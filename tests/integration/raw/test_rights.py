"""The roles and rights in docs/operations.md equal those of PostgreSQL's catalog."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import open_database
from loader.postgres.embedded import EmbeddedServer
from loader.raw.readers import DEFAULT_READER, default_reader_url
from tests.conftest import open_settings
from tests.integration.postgres.test_embedded import open_folder
from tests.support.folders import ROOT
from tests.support.own_server import copy_cluster

OPERATIONS = ROOT / "docs/operations.md"

# An object without an ACL has the default ACL, which grants functions to all roles.
RIGHTS = """
    with objects as (
        select
            format('database `%s`', datname) as object,
            datdba as owner,
            coalesce(datacl, acldefault('d', datdba)) as acl
        from pg_database
        where datname = 'warehouse'
        union all
        select
            case when nspname = 'iterable' then 'schema of a source' else format('schema `%s`', nspname) end,
            nspowner,
            coalesce(nspacl, acldefault('n', nspowner))
        from pg_namespace
        where nspname not like 'pg\\_%' and nspname <> 'information_schema'
        union all
        select
            case when relnamespace = 'iterable'::regnamespace then 'tables of a source' else 'tables of `raw`' end,
            relowner,
            coalesce(relacl, acldefault('r', relowner))
        from pg_class
        where relnamespace in ('raw'::regnamespace, 'iterable'::regnamespace) and relkind in ('r', 'p', 'v', 'm')
        union all
        select 'functions of `raw`', proowner, coalesce(proacl, acldefault('f', proowner))
        from pg_proc
        where pronamespace in ('raw'::regnamespace, 'iterable'::regnamespace)
    ),

    rights as (
        select object, owner as role, 'owner' as granted from objects
        union
        select object, entry.grantee, entry.granted
        from objects
        cross join lateral (
            select grantee, string_agg(lower(privilege_type), ', ' order by lower(privilege_type)) as granted
            from aclexplode(acl)
            where grantee <> owner
            group by grantee
        ) as entry
    )

    select
        object,
        case when role = 0 then 'everybody' when rolname = 'pg_database_owner' then 'loader' else rolname end,
        granted
    from rights
    left join pg_roles on pg_roles.oid = role
"""
ATTRIBUTES = """
    select rolname, concat_ws(
        ', ',
        case when rolcanlogin then 'login' end,
        case when rolsuper then 'superuser' end,
        case when rolcreaterole then 'createrole' end,
        case when rolcreatedb then 'createdb' end,
        case when rolreplication then 'replication' end,
        case when rolbypassrls then 'bypassrls' end,
        case when rolconnlimit >= 0 then 'connection limit ' || rolconnlimit end
    )
    from pg_roles
    where rolname not like 'pg\\_%'
"""


def documented(heading: str) -> set[tuple[str, ...]]:
    """Return the first three cells of each row of the table with a heading."""
    table = OPERATIONS.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1].split("\n\n", 1)[0]
    return {tuple(cell.strip() for cell in line.strip("|").split("|")[:3]) for line in table.splitlines()[1:]}


def named(role: str) -> str:
    """Return a role as the page names it."""
    return {DEFAULT_READER: "reader", "everybody": "everybody"}.get(role, f"`{role}`")


@pytest.fixture(scope="module")
def connection(cluster_template: Path) -> Iterator[psycopg.Connection]:
    """Return a connection to a new user's embedded database, with a source's table, a later table, and the reader."""
    with open_folder() as home:
        copy_cluster(cluster_template, home)
        settings = open_settings("", home).model_copy(update={"embedded_idle": 600.0})
        with open_database(settings) as database, database.connect(autocommit=True) as opened:
            opened.execute("create schema iterable; create table iterable.tracks (id text)")
            default_reader_url(opened, database.url, EmbeddedServer(home).folder)
            opened.execute("create table iterable.later (id text); create view iterable.seen as select 1 as one")
            yield opened


def test_the_page_lists_the_rights_on_every_object(connection: psycopg.Connection) -> None:
    """The page has every right on schemas, tables, functions and the database, and no other right."""
    found = {(item, named(role), granted) for item, role, granted in connection.execute(RIGHTS).fetchall()}
    assert found == documented("| object | role | rights |")


def test_the_page_lists_the_attributes_of_every_role(connection: psycopg.Connection) -> None:
    """No other role exists, and no role has more attributes than the page lists."""
    found = {(named(role), attributes) for role, attributes in connection.execute(ATTRIBUTES).fetchall()}
    assert found == {row[:2] for row in documented("| role | attributes | for |")}
    assert (
        connection.execute(
            "select roleid::regrole::text from pg_auth_members"
            " where member in ('loader'::regrole, 'warehouse_reader'::regrole) and not roleid::regrole::text = any(%s)",
            [[DEFAULT_READER]],
        ).fetchall()
        == []
    )


def test_the_page_names_the_settings_of_a_reader(connection: psycopg.Connection) -> None:
    """The settings equal those of the reader's role in its database."""
    row = connection.execute(
        "select array_to_string(setconfig, ', ') from pg_db_role_setting where setrole = %s::regrole", [DEFAULT_READER]
    ).fetchone()
    assert row is not None
    assert re.findall(r"(\w+)=", row[0]) == [
        "default_transaction_read_only",
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "search_path",
    ]
    assert {"default_transaction_read_only=on", "statement_timeout=5min"} <= set(row[0].split(", "))
