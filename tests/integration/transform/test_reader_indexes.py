"""Indexes of served tables: the yml lists them, runs build those of small tables, and `loader index` the others."""

import hashlib
import random
import string
from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.dbt import transform
from tests.conftest import Loader, loader_here
from tests.support.dbt_runs import run
from tests.support.factories import insert_event
from tests.support.folders import ROOT
from tests.support.served_tables import law

OPENED = [
    "USING brin (\"timestamp\") WITH (autosummarize='on')",
    "USING brin (received_at) WITH (autosummarize='on')",
    "USING btree (campaign_id)",
    "USING btree (user_id)",
]

# The indexes of a table with a user id for which a btree has no room.
OPENED_WITH_LONG = [*OPENED[:3], "USING spgist (user_id)"]

# A text that does not compress.
LONG = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=20_000))

# A text that compresses to fewer bytes in a payload than in a btree.
REPEATED = "a" * 600_000


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit."""
    with small.connect(autocommit=True) as opened:
        yield opened


def indexes(connection: psycopg.Connection, table: str) -> dict[str, str]:
    """Return the names of a table's indexes without its key, by their definitions, in their order."""
    query = """
        select regexp_replace(pg_get_indexdef(indexrelid), '^.* (USING .*)$', '\\1') as definition, relname
        from pg_index
        inner join pg_class on pg_class.oid = indexrelid
        where indrelid = %s::regclass and not indisprimary and indisvalid
        order by definition
    """
    return dict(connection.execute(query, [table]).fetchall())


def drop_indexes(connection: psycopg.Connection, table: str) -> None:
    """Drop the indexes of a table, except its key."""
    schema = table.split(".", maxsplit=1)[0]
    for name in indexes(connection, table).values():
        connection.execute(f'drop index {schema}."{name}"')  # type: ignore[call-overload]


def may_refuse_rows(connection: psycopg.Connection, table: str) -> bool:
    """Return whether a run expects that an object of another role refuses rows of a table."""
    row = connection.execute("select (raw.describe_table(%s) ->> 'may_refuse_rows')::boolean", [table]).fetchone()
    assert row is not None
    return bool(row[0])


def test_a_run_builds_the_indexes_of_the_yml(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """A table without a model has those of the times. No index makes a run expect refused rows."""
    assert list(indexes(connection, "iterable.email_opened")) == OPENED
    assert list(indexes(connection, "iterable.tracks")) == [OPENED[0], OPENED[1], OPENED[3]]
    assert not may_refuse_rows(connection, "iterable.email_opened")
    insert_event(connection, "order_placed", "a")
    loader_here(small_settings)("rescan")
    run(small, small_settings)
    assert list(indexes(connection, "iterable.order_placed")) == OPENED[:2]

    drop_indexes(connection, "iterable.email_opened")
    connection.execute("create index by_campaign on iterable.email_opened (campaign_id)")
    run(small, small_settings)
    assert indexes(connection, "iterable.email_opened").keys() == set(OPENED)
    assert indexes(connection, "iterable.email_opened")["USING btree (campaign_id)"] == "by_campaign"


@pytest.mark.parametrize("long", [LONG, REPEATED], ids=["not compressible", "compressible"])
@pytest.mark.parametrize("rebuilt", [False, True], ids=["increment", "rebuild"])
def test_an_index_takes_a_user_id_of_any_length(
    connection: psycopg.Connection, small: Database, small_settings: Settings, long: str, *, rebuilt: bool
) -> None:
    """A btree would refuse a text of 2,700 bytes, and with it the run of the table. The run replaces the btree."""
    insert_event(connection, "email_opened", "a", mark=long)
    insert_event(connection, "email_opened", "b", mark="short")
    run(small, small_settings, full_refresh=rebuilt)
    for table in ("email_opened", "tracks"):
        found = connection.execute(f"select id from iterable.{table} where user_id = %s", [long])  # type: ignore[call-overload]
        assert found.fetchall() == [("a",)]
    assert list(indexes(connection, "iterable.email_opened")) == OPENED_WITH_LONG
    assert list(indexes(connection, "iterable.email_delivered")) == OPENED
    assert not may_refuse_rows(connection, "iterable.email_opened")
    insert_event(connection, "email_opened", "c", mark="later")
    run(small, small_settings)
    assert list(indexes(connection, "iterable.email_opened")) == OPENED_WITH_LONG
    assert connection.execute("select count(*) from iterable.email_opened").fetchone() == (3,)


def test_a_first_fill_takes_a_user_id_of_any_length(unfilled: Database, unfilled_settings: Settings) -> None:
    """The index is built after the rows."""
    with unfilled.connect(autocommit=True) as connection:
        insert_event(connection, "email_opened", "a", mark=LONG)
        run(unfilled, unfilled_settings)
        assert list(indexes(connection, "iterable.email_opened")) == OPENED_WITH_LONG
        assert connection.execute("select count(*) from raw.waiting_indexes").fetchone() == (0,)


def test_a_run_that_cannot_replace_an_index_gives_the_reason(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """A reader holds the table. The next run writes the row."""
    insert_event(connection, "email_opened", "a", mark=LONG)
    with small.connect() as reader:
        reader.execute("select from iterable.email_opened")
        filled = transform(small, small_settings)
    [opened] = [table for table in filled if table.table == "email_opened"]
    assert "has no room for a user id of this run, and could not be dropped" in str(opened.error)
    assert "In the way: " in str(opened.error)
    run(small, small_settings)
    assert connection.execute("select id from iterable.email_opened").fetchall() == [("a",)]


def test_many_events_of_one_user_do_not_slow_down_inserts(connection: psycopg.Connection) -> None:
    """A hash index would read all entries of the user for each new row: 50 pages here, and thousands later."""
    insert = "insert into iterable.email_opened (id, user_id) select %s || i, 'u' from generate_series(1, %s) as i"
    connection.execute(insert, ("first", 20_000))
    row = connection.execute(f"explain (analyze, buffers, format json) {insert}", ("later", 100)).fetchone()  # type: ignore[call-overload]
    assert row is not None
    assert row[0][0]["Plan"]["Shared Hit Blocks"] < 3_000


@pytest.mark.parametrize(("kind", "migration"), [("hash", "0052_user_indexes.sql"), ("spgist", "0056_user_btrees.sql")])
def test_migrating_drops_the_indexes_of_earlier_versions(
    connection: psycopg.Connection, kind: str, migration: str
) -> None:
    """An index that a person made stays."""
    name = hashlib.md5(f'email_opened {kind} ["user_id"] f'.encode(), usedforsecurity=False).hexdigest()
    connection.execute(f'create index "{name}" on iterable.email_opened using {kind} (user_id)')  # type: ignore[call-overload]
    connection.execute(f"create index own on iterable.email_opened using {kind} (user_id)")  # type: ignore[call-overload]
    # The functions of the later migration are there already.
    dropping = (ROOT / "migrations/versions" / migration).read_text().partition("\n$$;\n")[0] + "\n$$"
    connection.execute(dropping)  # type: ignore[call-overload]
    assert indexes(connection, "iterable.email_opened")[f"USING {kind} (user_id)"] == "own"
    assert name not in indexes(connection, "iterable.email_opened").values()


@pytest.mark.parametrize(
    "statement",
    [
        "create unique index own on iterable.email_opened (campaign_id)",
        "create index own on iterable.email_opened (user_id)",
        "create index own on iterable.email_opened (campaign_id) where campaign_id > 0",
        "create index own on iterable.email_opened ((1 / campaign_id))",
    ],
)
def test_a_run_expects_refused_rows_of_other_indexes(connection: psycopg.Connection, statement: str) -> None:
    """Each of these indexes may refuse a row."""
    connection.execute(statement)  # type: ignore[call-overload]
    assert may_refuse_rows(connection, "iterable.email_opened")


@pytest.fixture
def run_without(small: Database, small_settings: Settings, connection: psycopg.Connection) -> Loader:
    """Return the command line on a database whose large table email_opened has lost its indexes, after a run."""
    drop_indexes(connection, "iterable.email_opened")
    insert_event(connection, "email_opened", "a")
    filled = run(small, small_settings.model_copy(update={"widen_bytes": 0}))
    [opened] = [table for table in filled if table.table == "email_opened"]
    assert opened.rows == 1
    return loader_here(small_settings)


def test_the_indexes_of_a_large_table_wait_for_the_command(
    run_without: Loader, connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """A run only says so. The command builds them, also after a try that was stopped."""
    assert not indexes(connection, "iterable.email_opened")
    names = [name for (name,) in connection.execute("select name from raw.waiting_indexes order by name")]
    assert len(names) == len(OPENED)
    connection.execute(f'create index "{names[0]}" on iterable.email_opened (email)')  # type: ignore[call-overload]
    status = run_without("status")
    assert "Indexes to be built (`loader index` builds them beside readers and runs)" in status.stdout
    assert "the table's size" in status.stdout

    built = run_without("index")
    assert (built.returncode, built.stdout.count("is built.")) == (0, len(OPENED))
    assert "the index of iterable.email_opened on campaign_id is built." in built.stdout
    assert list(indexes(connection, "iterable.email_opened")) == OPENED
    assert run_without("index").stdout == "No index is waiting.\n"
    run(small, small_settings)
    assert list(indexes(connection, "iterable.email_opened")) == OPENED
    assert law(connection)["waiting"] == 0


def test_the_command_finds_the_type_for_long_user_ids(run_without: Loader, connection: psycopg.Connection) -> None:
    """Later runs leave the index as it is."""
    connection.execute("insert into iterable.email_opened (id, user_id) values ('long', %s)", [LONG])
    assert run_without("index").returncode == 0
    assert list(indexes(connection, "iterable.email_opened")) == OPENED_WITH_LONG
    assert run_without("transform").returncode == 0
    assert list(indexes(connection, "iterable.email_opened")) == OPENED_WITH_LONG


def test_the_command_names_an_index_that_it_cannot_build(run_without: Loader, connection: psycopg.Connection) -> None:
    """The other indexes are built, and the waiting index stays on the list."""
    connection.execute(
        "update raw.waiting_indexes set definition = 'using brin (nothing)' where columns = 'campaign_id'"
    )
    built = run_without("index")
    assert built.returncode == 1
    assert "Error: the index of iterable.email_opened on campaign_id could not be built" in built.stderr
    assert list(indexes(connection, "iterable.email_opened")) == [OPENED[0], OPENED[1], OPENED[3]]
    assert connection.execute("select columns from raw.waiting_indexes").fetchall() == [("campaign_id",)]


def test_a_setting_leaves_the_indexes_out(unfilled: Database, unfilled_settings: Settings) -> None:
    """The tables have their key alone."""
    run(unfilled, unfilled_settings.model_copy(update={"reader_indexes": False}))
    with unfilled.connect(autocommit=True) as connection:
        assert not indexes(connection, "iterable.email_opened")
        assert connection.execute("select count(*) from raw.waiting_indexes").fetchone() == (0,)


def test_a_first_fill_leaves_statistics_and_few_pages_to_read(unfilled: Database, unfilled_settings: Settings) -> None:
    """Filters by day and by user read a part of the table, at once after the run."""
    with unfilled.connect(autocommit=True) as connection:
        connection.execute(
            """
            insert into raw.events (source, collection, message_id, received_at, payload)
            select
                'iterable', 'email_opened', md5(n::text), timestamptz '2026-01-01' + n * interval '10 min',
                jsonb_build_object(
                    'type', 'track', 'event', 'Email Opened', 'userId', 'u' || n, 'properties',
                    jsonb_build_object('campaignId', n % 500, 'emailSubject', repeat('s', 300))
                )
            from generate_series(1, 20000) as n
            """
        )
        run(unfilled, unfilled_settings)
        pages = connection.execute("select relpages from pg_class where oid = 'iterable.email_opened'::regclass")
        all_pages = pages.fetchone()
        assert all_pages is not None
        assert all_pages[0] > 800

        def pages_read(condition: str) -> int:
            explained = connection.execute(
                "explain (analyze, buffers, format json) select count(email_subject) from iterable.email_opened where "
                + condition  # type: ignore[operator]
            ).fetchone()
            assert explained is not None
            plan = explained[0][0]["Plan"]
            return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

        assert pages_read("received_at >= '2026-02-01' and received_at < '2026-02-02'") < all_pages[0] / 4
        assert pages_read("\"timestamp\" >= '2026-02-01' and \"timestamp\" < '2026-02-02'") < all_pages[0] / 4
        assert pages_read("user_id = 'u700'") < 10
        assert pages_read("campaign_id = 7") < 60
