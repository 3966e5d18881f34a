"""An owner of views gets no rights beyond its grants when the views are created again."""

import os
from collections.abc import Iterator

import psycopg
import pytest

from loader.settings import Settings

# Roles belong to the whole server, which several processes of a test run share.
HOSTILE = f"bi_hostile_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
PLAIN = f"plain_loader_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"

# `attack` tries several ways to more rights, and records each open way. An index needs an immutable function, which may
# call a function that is not immutable.
ATTACK = f"""
    create table bi.loot (got text);
    create function bi.attack() returns boolean language plpgsql as $$
    begin
        if current_user <> '{HOSTILE}' then
            insert into bi.loot values ('rights of ' || current_user);
        end if;
        begin
            insert into bi.loot select 'events: ' || count(*) from raw.events;
        exception when others then null;
        end;
        begin
            alter role {HOSTILE} superuser;
        exception when others then null;
        end;
        begin
            execute 'reset role';
            insert into bi.loot values ('reset role');
        exception when others then null;
        end;
        return true;
    end
    $$;
    create function bi.check_value(integer) returns boolean immutable language plpgsql as $$
    begin
        return bi.attack();
    end
    $$;
    create domain bi.checked as integer check (bi.check_value(value));
    create type bi.pair as (one bi.checked, two bi.checked);
"""
HOSTILE_VIEWS = {
    "rows of a materialized view": """
        create materialized view bi.trap as select id, found, bi.attack() as attacked from iterable.wide
    """,
    "index of a materialized view": """
        create materialized view bi.trap as select id, found from iterable.wide;
        create index trap_index on bi.trap (bi.check_value(length(id)))
    """,
    "literal in a view": """
        create view bi.trap as select id, found, '{1}'::bi.checked[] as attacked from iterable.wide
    """,
    "literal in an index": """
        create materialized view bi.trap as select id, found from iterable.wide;
        create index trap_index on bi.trap (((('(1,2)'::bi.pair)).one))
    """,
}


@pytest.fixture
def connection(settings: Settings) -> Iterator[psycopg.Connection]:
    """Return a connection of the widening role, in a database with a hostile role that may read the table."""
    with psycopg.connect(settings.database_url, autocommit=True) as opened:
        opened.execute(f"""
            create schema iterable;
            create table iterable.wide (id text, found boolean);
            insert into iterable.wide values ('e1', true);
            insert into raw.events (source, message_id, payload) values ('iterable', 'e1', '{{}}');
            create role {HOSTILE} login password 'secret';
            grant {HOSTILE} to current_user;
            create schema bi authorization {HOSTILE};
            grant usage on schema iterable to {HOSTILE};
            grant select on iterable.wide to {HOSTILE};
        """)
        yield opened
        opened.execute(f"drop owned by {HOSTILE} cascade; drop role {HOSTILE}")


def as_hostile(connection: psycopg.Connection, script: str) -> None:
    """Run statements in a session of the hostile role."""
    with psycopg.connect(
        host=connection.info.host,
        port=connection.info.port,
        dbname=connection.info.dbname,
        user=HOSTILE,
        password="secret",
        autocommit=True,
    ) as session:
        session.execute(script)


def widen(connection: psycopg.Connection) -> str:
    """Widen the column as `loader widen` does, and return the obstacles."""
    row = connection.execute("select raw.widen_column('iterable.wide', 'found', 'text', true)").fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("view", HOSTILE_VIEWS.values(), ids=HOSTILE_VIEWS)
def test_c1_a_recreated_view_runs_nothing_with_the_rights_of_the_loader(
    connection: psycopg.Connection, view: str
) -> None:
    """Rows, indexes and literals of a view never run its owner's functions as another role."""
    as_hostile(connection, ATTACK)
    as_hostile(connection, view)
    as_hostile(connection, "truncate bi.loot")
    widen(connection)
    assert connection.execute("select got from bi.loot").fetchall() == []
    assert connection.execute(f"select rolsuper from pg_roles where rolname = '{HOSTILE}'").fetchone() == (False,)


def test_c1_a_view_with_a_type_of_its_owner_blocks_widening(connection: psycopg.Connection) -> None:
    """The view and the column stay unchanged, and the reason names the view."""
    as_hostile(connection, ATTACK)
    as_hostile(connection, HOSTILE_VIEWS["literal in a view"])
    assert widen(connection) == "bi.trap uses a type of its own"
    assert connection.execute("select found from iterable.wide").fetchone() == (True,)


def test_c1_a_materialized_view_of_another_owner_is_filled_again(connection: psycopg.Connection) -> None:
    """It has its rows, computed with its owner's rights, its index and its owner. An empty view stays empty."""
    as_hostile(
        connection,
        """
        create materialized view bi.filled as select id, found, current_user::text as reader from iterable.wide;
        create unique index filled_id on bi.filled (lower(id)) where id <> '';
        create materialized view bi.empty as select found from iterable.wide with no data;
        create view bi.above as select found from bi.filled
        """,
    )
    assert widen(connection) == ""
    assert connection.execute("select id, found, reader from bi.filled").fetchall() == [("e1", "true", HOSTILE)]
    assert connection.execute(
        "select relname, relispopulated, pg_get_userbyid(relowner) from pg_class"
        " where relnamespace = 'bi'::regnamespace order by relname"
    ).fetchall() == [(name, name != "empty", HOSTILE) for name in ("above", "empty", "filled", "filled_id")]


def test_c1_a_view_of_a_role_outside_the_loaders_roles_blocks_widening(connection: psycopg.Connection) -> None:
    """A role without rights over the owner leaves the view unchanged, and names the owner."""
    as_hostile(connection, "create view bi.theirs as select found from iterable.wide")
    connection.execute(f"""
        create role {PLAIN};
        grant {PLAIN} to current_user;
        grant usage on schema raw, bi to {PLAIN};
        grant create, usage on schema iterable to {PLAIN};
        alter table iterable.wide owner to {PLAIN};
    """)
    try:
        with connection.transaction():
            connection.execute(f"set local role {PLAIN}")
            assert widen(connection) == f"bi.theirs belongs to {HOSTILE}"
    finally:
        connection.execute(f"drop owned by {PLAIN} cascade; drop role {PLAIN}")


def test_c1_functions_of_the_raw_schema_call_no_functions_in_public(connection: psycopg.Connection) -> None:
    """Each function that runs statements finds names only in pg_catalog, although others may create in `public`."""
    assert (
        connection.execute(
            "select proname from pg_proc join pg_language on pg_language.oid = prolang"
            " where pronamespace = 'raw'::regnamespace and lanname = 'plpgsql'"
            " and not coalesce(proconfig, '{}') && array['search_path=pg_catalog']"
        ).fetchall()
        == []
    )
