"""An obstacle to one table does not affect the other tables, and its reason is shown."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from loader.events.segment import parse_lines
from loader.postgres.connection import NO_TIMEOUTS
from loader.postgres.database import Database, bundled
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.settings import Settings
from tests.conftest import loader_here, open_settings
from tests.integration.transform.test_schedule import scheduled
from tests.support.collector_thread import assert_taken, opened_entrance
from tests.support.served_tables import law
from tests.support.waiting import wait_until


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit."""
    with small.connect(autocommit=True) as opened:
        yield opened


def send(connection: psycopg.Connection, *names: str, source: str = "iterable") -> None:
    """Land an event of each name."""
    lines = [
        json.dumps({"type": "track", "event": name, "userId": "u", "messageId": f"{source}-{name}"}) for name in names
    ]
    with SchemaRegistry().transaction(connection) as seen:
        land(connection, source, "file", parse_lines("\n".join(lines).encode(), 0), seen)


def held(connection: psycopg.Connection) -> dict[str, str]:
    """Return the reasons of held tables, by name."""
    rows: Sequence[tuple[str, str]] = connection.execute(
        "select source || '.' || model, reason from raw.held_tables where held = 'fill'"
    ).fetchall()
    return dict(rows)


STRANGERS = {
    "a_view": "create view iterable.a_view as select 1",
    "b_kept": "create materialized view iterable.b_kept as select 1",
    "c_sequence": "create sequence iterable.c_sequence",
    "d_type": "create type iterable.d_type as (x int)",
    "e_enum": "create type iterable.e_enum as enum ('x')",
}


def test_b5_a_view_or_type_blocks_only_the_table_of_its_name(
    connection: psycopg.Connection, small_settings: Settings
) -> None:
    """Each such object is named with advice, and the other tables are filled. After its removal, its table is made."""
    loader = loader_here(small_settings)
    for statement in STRANGERS.values():
        connection.execute(statement)  # type: ignore[call-overload]
    send(connection, "A View", "B Kept", "C Sequence", "D Type", "E Enum", "G Table", "Email Opened")
    done = loader("transform")
    assert done.returncode == 1
    assert "iterable.a_view was left as it was: iterable.a_view is a view, and no table. Rename or drop" in done.stderr
    words = ["view", "materialized view", "sequence", "composite type", "type"]
    assert held(connection) == {
        f"iterable.{name}": f"iterable.{name} is a {word}, and no table. Rename or drop it, and the next run makes the"
        " table"
        for name, word in zip(STRANGERS, words, strict=True)
    }
    assert connection.execute("select count(*) from iterable.g_table").fetchone() == (1,)
    assert connection.execute("select count(*) from iterable.email_opened").fetchone() == (1,)
    assert connection.execute("select status, whole from raw.transforms order by started_at desc").fetchone() == (
        "success",
        True,
    )
    assert law(connection)["waiting"] == len(STRANGERS)

    connection.execute("drop view iterable.a_view; drop type iterable.e_enum")
    assert loader("transform").returncode == 1
    assert connection.execute("select count(*) from iterable.a_view").fetchone() == (1,)
    assert connection.execute("select count(*) from iterable.e_enum").fetchone() == (1,)
    assert "iterable.a_view" not in held(connection)
    assert law(connection)["waiting"] == len(STRANGERS) - 2


def test_b6_a_schema_that_cannot_be_made_blocks_only_its_source(
    connection: psycopg.Connection, small_settings: Settings
) -> None:
    """A role without CREATE on the database fills the first source. The second's tables are held with the reason."""
    connection.execute("""
        insert into raw.sources (name, schema_name) values ('Other', 'other');
        drop role if exists no_creator;
        create role no_creator login password 'secret';
        grant usage on schema raw to no_creator;
        grant all on all tables in schema raw to no_creator;
        grant all on all sequences in schema raw to no_creator;
    """)
    connection.execute("""
        do $$ declare name text; begin
            alter schema iterable owner to no_creator;
            for name in select tablename from pg_tables where schemaname = 'iterable' loop
                execute format('alter table iterable.%I owner to no_creator', name);
            end loop;
        end $$
    """)
    try:
        send(connection, "Email Opened", "New Event")
        send(connection, "Email Opened", "New Event", source="other")
        host = small_settings.database_url.split("@")[1]
        loader = loader_here(open_settings(f"postgresql://no_creator:secret@{host}", small_settings.home))
        done = loader("transform")
        assert done.returncode == 1
        reason = (
            "schema other is not there, and role no_creator may not create it. Let the owner of the database run: "
            "create schema other authorization no_creator"
        )
        assert done.stderr.count("Error:") == 1
        assert f"were left as they were: {reason}" in done.stderr
        assert connection.execute("select count(*) from iterable.email_opened").fetchone() == (1,)
        assert connection.execute("select count(*) from iterable.new_event").fetchone() == (1,)
        assert {name: why for name, why in held(connection).items() if why != reason} == {}
        assert set(held(connection)) == {
            f"other.{name}" for name in ("email_delivered", "email_opened", "new_event", "tracks")
        }
        connection.execute("create schema other authorization no_creator")
        done = loader("transform")
        assert done.returncode == 0, done.stderr
        assert connection.execute("select count(*) from other.new_event").fetchone() == (1,)
        assert held(connection) == {}
    finally:
        connection.execute("drop owned by no_creator cascade; drop role no_creator")


def test_b6_the_error_of_a_failing_hook_is_shown_once(connection: psycopg.Connection, small_settings: Settings) -> None:
    """It is not shown as an error of every table."""
    connection.execute("""
        create function public.refuse() returns trigger language plpgsql as $$
        begin raise exception 'the disk of the books is full'; end $$;
        create trigger refuse before insert on raw.transforms for each row execute function public.refuse();
    """)
    done = loader_here(small_settings)("transform")
    assert done.returncode == 1
    assert "the disk of the books is full" in done.stderr
    assert done.stderr.count("Error") == 1
    assert "skipped" not in done.stderr.lower()


LIMITS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
}


def test_b5_a_run_and_a_load_bring_their_own_limits(
    connection: psycopg.Connection, small_settings: Settings, tmp_path: Path
) -> None:
    """Defaults of a role or a database neither end a run or a load nor change their reads.

    Triggers check this inside.
    """
    columns = ", ".join(f"current_setting('{name}')" for name in LIMITS)
    connection.execute(f"""
        create table public.seen (operation text, limits text[]);
        create function public.note_limits() returns trigger language plpgsql as $$
        begin
            insert into public.seen values (tg_table_name || ' ' || tg_op, array[{columns}]);
            return new;
        end $$;
    """)  # type: ignore[call-overload]
    for table in ("raw.events", "raw.transforms", "raw.cursors", "raw.generation", "iterable.email_opened"):
        connection.execute(
            f"create trigger note_limits before insert or update on {table}"  # type: ignore[call-overload]
            " for each row execute function public.note_limits()"
        )
    name = connection.info.dbname
    for setting, value in {
        "statement_timeout": "10min",
        "idle_in_transaction_session_timeout": "10min",
        "transaction_timeout": "10min",
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
    }.items():
        connection.execute(f"alter database {name} set {setting} = '{value}'")  # type: ignore[call-overload]
    loader = loader_here(small_settings)
    call = {"type": "track", "userId": "u"}
    lines = "\n".join(
        json.dumps(call | {"event": event, "messageId": event}) for event in ("Email Opened", "New Event")
    )
    file = tmp_path / "events.ndjson"
    file.write_text(lines, encoding="utf-8")
    for arguments in (["load", str(file)], ["transform"], ["transform", "--full-refresh"], ["rescan"], ["migrate"]):
        done = loader(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    seen = connection.execute("select operation, limits from public.seen").fetchall()
    operations = {operation for operation, _ in seen}
    assert operations >= {"transforms INSERT", "transforms UPDATE", "email_opened INSERT", "cursors UPDATE"}
    assert {"events_email_opened INSERT", "events_other INSERT", "generation UPDATE"} <= operations
    assert {(operation, *limits) for operation, limits in seen} == {
        (operation, *LIMITS.values()) for operation in operations
    }


def test_b5_a_collector_and_a_scheduler_bring_their_own_limits(
    connection: psycopg.Connection, small_settings: Settings
) -> None:
    """The defaults would end each of their statements, but an event reaches its table."""
    name = connection.info.dbname
    with opened_entrance(small_settings) as entrance:
        for setting, value in {"default_transaction_read_only": "on", "statement_timeout": "50ms"}.items():
            connection.execute(f"alter database {name} set {setting} = '{value}'")  # type: ignore[call-overload]
        # The statement of a single call takes longer than that limit.
        connection.execute("""
            create function public.dawdle() returns trigger language plpgsql as
            $$ begin perform pg_sleep(0.1); return new; end $$;
            create trigger dawdle before insert on raw.events for each row execute function public.dawdle();
        """)
        with entrance.with_settings() as collector, scheduled(small_settings):
            for number in range(4):
                call = {"event": "Email Opened", "userId": "u", "messageId": f"e{number}"}
                assert_taken(collector.post("/v1/track", call, key=entrance.key))
            assert len(entrance.landed()) == 4
            rows = "select count(*) from iterable.email_opened"
            wait_until(lambda: connection.execute(rows).fetchone() == (4,), "the rows")


def test_b5_a_server_that_does_not_know_a_time_limit_takes_the_statements(connection: psycopg.Connection) -> None:
    """PostgreSQL 16 has no transaction_timeout. The test uses a name that no version has in its place."""
    with connection.transaction():
        connection.execute(NO_TIMEOUTS.replace("transaction_timeout", "unknown_timeout"))  # type: ignore[call-overload]
        assert connection.execute("select current_setting('unknown_timeout', true)").fetchone() == (None,)
    macro = bundled("dbt_project") / "macros" / "transforms.sql"
    written = re.search(r"select set_config\('transaction_timeout'.*", macro.read_text(encoding="utf-8"))
    assert written
    assert " ".join(written[0].split()).rstrip(";") in " ".join(NO_TIMEOUTS.split())
