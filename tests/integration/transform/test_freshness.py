"""The lag of the tables: correct, and at a cost that does not grow with the history."""

import json
from typing import Any

import psycopg
import pytest

from loader.postgres.database import Database
from loader.raw.lag import COUNTED_AT_MOST, WAITING, Freshness, freshness
from loader.settings import Settings
from loader.transform.scheduler import BY_INDEX, NEWS
from tests.support.dbt_runs import run
from tests.support.factories import insert_event

HISTORY = """
    insert into raw.events (source, collection, message_id, payload)
    select
        'iterable',
        (array['email_opened', 'email_delivered', 'order_placed', '', null])[1 + mod(n, 5)],
        'm' || n,
        jsonb_build_object('type', 'track', 'userId', 'u', 'properties', jsonb_build_object('campaignId', n))
    from generate_series(1, 5000) as n
"""


@pytest.fixture
def history(small: Database, small_settings: Settings) -> Database:
    """Return a database with transformed events, and with statistics from before these events."""
    with small.connect(autocommit=True) as connection:
        connection.execute("analyze raw.events")
        connection.execute(HISTORY)
        connection.execute(
            "insert into raw.collections values ('iterable', 'order_placed', 'Order Placed', default, 'm1')"
        )
    run(small, small_settings)
    return small


def read(database: Database) -> Freshness:
    """Return the lag of the tables."""
    with database.connect() as connection:
        return freshness(connection)


def rows_read(connection: psycopg.Connection, statement: str) -> int:
    """Run a statement and return the number of entries of raw.events that it read; fail if it scanned a whole table."""

    def count(plan: dict[str, Any]) -> int:
        here = 0
        if str(plan.get("Relation Name", "")).startswith("events"):
            assert plan["Node Type"] in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, plan["Node Type"]
            passed_over = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
            here = round((plan["Actual Rows"] + passed_over) * plan["Actual Loops"])
        return here + sum(count(child) for child in plan.get("Plans", []))

    with connection.transaction():
        connection.execute(BY_INDEX)
        explained = connection.execute(f"explain (analyze, format json) {statement}").fetchone()
    assert explained is not None
    plan = explained[0] if not isinstance(explained[0], str) else json.loads(explained[0])
    return count(plan[0]["Plan"])


def test_the_check_for_new_events_does_not_read_the_history(history: Database, small_settings: Settings) -> None:
    """Without new events the check reads nothing, even for a table without recent events and with a second source."""
    statements = (NEWS, WAITING.replace("%(most)s", str(COUNTED_AT_MOST)))
    with history.connect(autocommit=True) as connection:
        assert [rows_read(connection, statement) for statement in statements] == [0, 0]
        connection.execute("insert into raw.sources (name, schema_name) values ('Other', 'other')")
        run(history, small_settings)
        connection.execute(HISTORY.replace("'m' || n", "'n' || n").replace("5000", "100"))
        run(history, small_settings)
        insert_event(connection, "email_opened", "new")
        for statement in statements:
            assert 0 < rows_read(connection, statement) <= 4


def test_freshness_gives_the_age_of_the_oldest_waiting_event(small: Database, small_settings: Settings) -> None:
    """An event counts once, until it is in its own table and in tracks. A call other than track never counts."""
    assert read(small).waiting == 0
    assert read(small).oldest_seconds is None
    assert read(small).last_success_at is not None
    with small.connect(autocommit=True) as connection:
        insert_event(connection, "email_opened", "a")
        insert_event(connection, "never_seen", "b")
        insert_event(connection, "", "c")
        insert_event(connection, None, "d")
        connection.execute("update raw.events set landed_at = now() - interval '1 hour' where message_id = 'a'")
        behind = read(small)
        assert behind.waiting == 3
        assert behind.oldest_seconds is not None
        assert 3600 <= behind.oldest_seconds < 7200
        run(small, small_settings, "tracks")
        assert read(small).waiting == 1
        run(small, small_settings, "email_opened")
        assert read(small).waiting == 0


def test_events_of_a_late_transaction_wait(small: Database, small_settings: Settings) -> None:
    """Events that commit after a run with younger events are waiting, and they are news."""
    with small.connect() as late, small.connect(autocommit=True) as connection:
        insert_event(late, "email_opened", "late")
        insert_event(connection, "email_opened", "early")
        run(small, small_settings)
        assert connection.execute(NEWS).fetchone() == (False,)
        late.commit()
        assert connection.execute(NEWS).fetchone() == (True,)
        assert read(small).waiting == 1
        run(small, small_settings)
        assert connection.execute(NEWS).fetchone() == (False,)


def test_a_run_of_some_tables_leaves_work_open(small: Database, small_settings: Settings) -> None:
    """Only a run that filled every table shows that no work is left."""
    with small.connect(autocommit=True) as connection:
        insert_event(connection, "email_opened", "a")
        run(small, small_settings, "tracks", "email_opened")
        assert connection.execute(NEWS).fetchone() == (True,)
        run(small, small_settings)
        assert connection.execute(NEWS).fetchone() == (False,)


def test_freshness_counts_open_quarantine_messages_and_scheduler_failures(small: Database) -> None:
    """Open messages count by reason. Failures count only for the scheduler that is at work."""
    refused = (
        "insert into raw.quarantine (source, entrance, reason, detail, payload) values ('iterable', 'file', %s, '', '')"
    )
    scheduler = """
        insert into raw.schedules (id, host, process_id, every, last_seen_at, state, failures)
        values (%s, 'here', 1, '5 s', now() - %s::interval, %s, %s)
    """
    with small.connect(autocommit=True) as connection:
        for reason in ("invalid_json", "invalid_json", "bad_request"):
            connection.execute(refused, (reason,))
        connection.execute(
            "update raw.quarantine set resolved_at = now(), resolution = 'retried' where reason = 'bad_request'"
        )
        assert read(small).quarantine == {"invalid_json": 2}
        assert read(small).failures is None
        connection.execute(scheduler, ("dead", "1 minute", "idle", 7))
        connection.execute(scheduler, ("second", "0 s", "standby", 5))
        assert read(small).failures is None
        connection.execute(scheduler, ("first", "2 s", "backing off", 3))
        assert read(small).failures == 3
