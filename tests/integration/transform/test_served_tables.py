"""Served tables are never dropped or swapped: dependent objects survive, and runs may overlap or be killed."""

import signal
from functools import partial

import psycopg
import pytest
import yaml

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.dbt import transform
from tests.support.dbt_runs import copied_project, run, run_dbt, start_dbt, succeed
from tests.support.waiting import wait_until

MODELS = ("email_opened", "email_delivered", "tracks")
MANY = """
    insert into raw.events (source, collection, message_id, payload)
    select
        'iterable',
        (array['email_opened', 'email_delivered', 'order_shipped', 'order_placed'])[1 + mod(n, 4)],
        'm' || n,
        jsonb_build_object('type', 'track', 'userId', 'u', 'properties', jsonb_build_object('campaignId', n))
    from generate_series(%s::int, %s::int) as n
"""


def land(url: str, first: int, last: int) -> None:
    """Land events with consecutive numbers, in one transaction."""
    with psycopg.connect(url) as connection:
        connection.execute(MANY, (first, last))


def assert_complete(url: str, last: int) -> None:
    """Check that every event from 1 to a number is in its table and in tracks once, and that the law holds."""
    with psycopg.connect(url) as connection:
        for table, rest in (("email_opened", 0), ("email_delivered", 1)):
            numbers = connection.execute(f"select campaign_id from iterable.{table} order by 1").fetchall()
            assert [row[0] for row in numbers] == [n for n in range(1, last + 1) if n % 4 == rest]
        assert connection.execute("select count(*), count(distinct id) from iterable.tracks").fetchone() == (last, last)
        law = connection.execute(
            "select accepted, in_collections + in_tracks_only, duplicates, missing_in_collections, missing_in_tracks"
            " from raw.conservation"
        )
        assert law.fetchone() == (last, last, 0, 0, 0)


@pytest.mark.heavy
def test_concurrent_runs_serve_each_event_once(small: Database, small_settings: Settings) -> None:
    """Two runs of dbt by hand and a run of the loader overlap while events land. Each event is served once."""
    land(small.url, 1, 4000)
    with start_dbt(small_settings, "run") as one, start_dbt(small_settings, "run") as other:
        land(small.url, 4001, 5000)
        run(small, small_settings)
        succeed(one)
        succeed(other)
    run(small, small_settings)
    assert_complete(small.url, 5000)


def filling(watcher: psycopg.Connection, tables: int) -> bool:
    """Return whether a run is filling a table, or has filled so many."""
    inserts = watcher.execute(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name = 'dbt' and query ilike '%insert into%'"
    ).fetchone()
    filled = watcher.execute("select count(*) from raw.syncs where read_rows > 0").fetchone()
    assert inserts is not None
    assert filled is not None
    return inserts[0] > 0 or filled[0] >= tables


@pytest.mark.parametrize(("events", "kills"), [(3_000, (1,)), pytest.param(30_000, (1, 3), marks=pytest.mark.heavy)])
def test_a_killed_run_is_continued(
    small: Database, small_settings: Settings, events: int, kills: tuple[int, ...]
) -> None:
    """After any kill of dbt, the next run leaves each event once, and the killed run is marked as interrupted."""
    land(small.url, 1, events)
    with psycopg.connect(small.url, autocommit=True) as watcher:
        for tables in kills:
            with start_dbt(small_settings, "run", "--threads", "1") as process:
                # Kill the run when it has begun to fill its n-th table.
                wait_until(partial(filling, watcher, tables), "the run to fill tables")
                process.send_signal(signal.SIGKILL)
            watcher.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = current_database() and application_name = 'dbt'"
            )
        run(small, small_settings)
        states = watcher.execute("select status, count(*) from raw.transforms group by 1").fetchall()
    assert dict(states) == {"success": 2, "interrupted": len(kills)}
    assert_complete(small.url, events)


def test_views_grants_and_readers_survive_a_new_column_and_a_rebuild(small: Database, small_settings: Settings) -> None:
    """A new column and a full refresh change rows and columns in place. Dependent objects stay unchanged."""
    land(small.url, 1, 400)
    run(small, small_settings, *MODELS)
    project = copied_project(small_settings)
    model = project / "models" / "iterable" / "email_opened.yml"
    described = yaml.safe_load(model.read_text(encoding="utf-8"))
    described["models"][0]["columns"].append(
        {
            "name": "order_total",
            "data_type": "numeric",
            "description": "What was bought.",
            "config": {"meta": {"property": "orderTotal"}},
        }
    )
    model.write_text(yaml.safe_dump(described), encoding="utf-8")
    with psycopg.connect(small.url, autocommit=True) as owner, psycopg.connect(small.url) as reader:
        owner.execute("drop role if exists analyst")
        owner.execute("create role analyst")
        owner.execute("grant select on iterable.email_opened to analyst")
        owner.execute(
            "create view public.campaigns as select campaign_id, count(*) as opens"
            " from iterable.email_opened group by 1"
        )
        table = owner.execute("select 'iterable.email_opened'::regclass::oid").fetchone()

        reader.execute("set transaction isolation level repeatable read")
        before = reader.execute("select id, uuid_ts from iterable.email_opened order by id").fetchall()
        with reader.cursor("open_cursor") as cursor:
            cursor.execute("select id from iterable.email_delivered order by id")
            assert len(cursor.fetchmany(10)) == 10
            # The reader's transaction is still open. A rebuild of the tables it has read does not wait for it.
            assert not any(t.error for t in transform(small, small_settings, full_refresh=True))
            assert reader.execute("select id, uuid_ts from iterable.email_opened order by id").fetchall() == before
            assert len(cursor.fetchall()) == 90
        reader.commit()

        for arguments in (["--select", "email_opened"], ["--full-refresh"]):
            code, output = run_dbt(small.url, project, "run", *arguments)
            assert code == 0, output
        assert owner.execute("select 'iterable.email_opened'::regclass::oid").fetchone() == table
        assert owner.execute("select count(*), sum(opens) from public.campaigns").fetchone() == (100, 100)
        assert owner.execute("select has_table_privilege('analyst', 'iterable.email_opened', 'select')").fetchone() == (
            True,
        )
        described = owner.execute(
            "select format_type(atttypid, atttypmod), col_description(attrelid, attnum) from pg_attribute"
            " where attrelid = 'iterable.email_opened'::regclass and attname = 'order_total'"
        ).fetchone()
        assert described == ("numeric", "What was bought.")
        owner.execute("drop owned by analyst")
        owner.execute("drop role analyst")
    assert_complete(small.url, 400)


def test_a_table_with_rows_from_outside_raw_events_is_left_alone(
    unfilled: Database, unfilled_settings: Settings
) -> None:
    """Rows that did not come from raw.events are replaced only on request. The other tables are filled."""
    with unfilled.connect(autocommit=True) as connection:
        connection.execute("create schema iterable")
        connection.execute("create table iterable.email_opened (id varchar(1024) primary key, note text)")
        connection.execute("insert into iterable.email_opened values ('theirs', 'kept')")
        connection.execute("insert into raw.sources (name, schema_name) values ('App', 'app')")
        for _ in range(2):
            filled = {(table.source, table.table): table for table in transform(unfilled, unfilled_settings)}
            assert "did not come from raw.events" in filled["iterable", "email_opened"].held
            assert not any(table.error for table in filled.values())
            assert [name for name, table in filled.items() if table.held] == [("iterable", "email_opened")]
            assert connection.execute("select * from iterable.email_opened").fetchall() == [("theirs", "kept")]
        assert connection.execute("select raw.count_rows('app', 'email_opened')").fetchone() == (0,)
        run(unfilled, unfilled_settings, "email_opened", full_refresh=True)
        assert connection.execute("select * from raw.held_tables").fetchall() == []


def test_a_dropped_table_comes_back_whole(small: Database, small_settings: Settings) -> None:
    """A dropped table is made again from all landed events."""
    land(small.url, 1, 40)
    run(small, small_settings, *MODELS)
    with small.connect(autocommit=True) as connection:
        connection.execute("drop table iterable.email_opened")
    land(small.url, 41, 44)
    run(small, small_settings, *MODELS)
    assert_complete(small.url, 44)


def test_every_source_has_its_own_tables(small: Database, small_settings: Settings) -> None:
    """Each of two sources has every table, and their events stay separate."""
    with small.connect(autocommit=True) as connection:
        connection.execute("insert into raw.sources (name, schema_name) values ('Iterable EU', 'iterable_eu')")
        connection.execute(MANY, (1, 8))
        connection.execute(MANY.replace("'iterable'", "'iterable_eu'"), (1, 4))
        filled = transform(small, small_settings)
        rows = {f"{t.source}.{t.table}": t.rows for t in filled if t.rows}
        assert rows["iterable.tracks"] == 8
        assert rows["iterable_eu.tracks"] == 4
        assert rows["iterable_eu.email_opened"] == 1
        tables = connection.execute(
            "select schemaname, count(*) from pg_tables where schemaname ~ '^iterable' group by 1"
        )
        assert dict(tables.fetchall()) == {"iterable": len(MODELS), "iterable_eu": len(MODELS)}


HOSTILE = [
    '{"properties": {"campaignId": "' + "9" * 200_000 + '"}}',
    '{"properties": {"campaignId": "NaN"}}',
    '{"properties": {"campaignId": {"a": 1}, "isBot": "perhaps"}}',
    '{"properties": {"campaignId": "", "isBot": ""}}',
    '{"properties": null, "context": "text", "timestamp": 12, "sentAt": {"a": 1}}',
    '{"timestamp": "now", "sentAt": "today"}',
    '{"timestamp": "infinity", "sentAt": "9999-12-31T23:59:59Z"}',
    '{"timestamp": "0001-01-01T00:00:00Z", "sentAt": "9999-12-31T23:59:59Z", "originalTimestamp": "x"}',
    '{"timestamp": "2020-13-45T99:99:99Z"}',
    '{"properties": [1, 2], "context": []}',
]


def test_no_value_breaks_a_run(small: Database, small_settings: Settings) -> None:
    """Every event has its row. A value that does not fit is NULL and listed."""
    with small.connect(autocommit=True) as connection:
        for number, payload in enumerate(HOSTILE):
            connection.execute(
                "insert into raw.events (source, collection, message_id, payload)"
                " values ('iterable', 'email_opened', %s, %s)",
                (str(number), payload),
            )
        filled = transform(small, small_settings, select=["email_opened", "tracks"])
        assert [table.error for table in filled if table.error] == []
        rows = connection.execute(
            'select campaign_id, is_bot, "timestamp" <= now() from iterable.email_opened'
        ).fetchall()
        assert rows == [(None, None, True)] * len(HOSTILE)
        mismatched = connection.execute("select event_id, column_name from raw.mismatches order by 1, 2").fetchall()
        assert mismatched == [
            ("0", "campaign_id"),
            ("1", "campaign_id"),
            ("2", "campaign_id"),
            ("2", "is_bot"),
            ("4", "sent_at"),
            ("4", "timestamp"),
            ("5", "sent_at"),
            ("5", "timestamp"),
            ("6", "timestamp"),
            ("7", "timestamp"),
            ("8", "timestamp"),
        ]
