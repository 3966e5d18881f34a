"""The cost of an increment: it reads its own partition by the index, and a run without work writes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from dbt_common.behavior_flags import BehaviorFlagRendered

from loader.events.segment import parse_lines
from loader.postgres.database import Database
from loader.postgres.embedded import EmbeddedServer
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.settings import Settings
from loader.transform.dbt import transform

HISTORY = """
    insert into raw.events (source, collection, message_id, payload)
    select
        'iterable',
        (array['email_opened', 'email_delivered', 'order_placed'])[1 + mod(n, 3)],
        'm' || n,
        jsonb_build_object('type', 'track', 'userId', 'u', 'properties', jsonb_build_object('campaignId', n))
    from generate_series(1, 3000) as n
"""
SETTINGS = """
    select
        set_config('loader.source', 'iterable', false),
        set_config('loader.previous_snapshot', (select snapshot::text from raw.cursors where model = %(model)s), false),
        set_config('loader.snapshot', pg_current_snapshot()::text, false),
        set_config('enable_seqscan', 'off', false)
"""


@pytest.fixture
def history(small: Database, small_settings: Settings) -> Database:
    """Return a database with transformed events, and one new event of each kind."""
    with small.connect(autocommit=True) as connection:
        connection.execute(HISTORY)
        transform(small, small_settings, select=["email_opened", "email_delivered", "tracks"])
        connection.execute(HISTORY.replace("'m' || n", "'n' || n").replace("3000", "3"))
        connection.execute("analyze raw.events")
    return small


def compiled(settings: Settings, model: str) -> str:
    """Return a model's SQL as the last run compiled it."""
    models = settings.home / "dbt" / "target" / "compiled" / "iterable_warehouse" / "models" / "iterable"
    return (models / f"{model}.sql").read_text(encoding="utf-8")


def scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes of a plan that read raw.events."""
    found = [plan] if plan.get("Schema") == "raw" or str(plan.get("Relation Name", "")).startswith("events") else []
    for child in plan.get("Plans", []):
        found += scans(child)
    return found


@pytest.mark.parametrize(("model", "partitions"), [("email_opened", 1), ("tracks", 28)])
def test_an_increment_reads_its_own_partition_by_the_index(
    history: Database, small_settings: Settings, model: str, partitions: int
) -> None:
    """A collection's increment reads one partition, and that of tracks reads each partition.

    No partition is scanned.
    """
    statement = compiled(small_settings, model)
    with history.connect(autocommit=True) as connection:
        connection.execute(SETTINGS, {"model": model})
        explained = connection.execute(f"explain (analyze, verbose, format json) {statement}").fetchone()
    assert explained is not None
    plan = explained[0] if not isinstance(explained[0], str) else json.loads(explained[0])
    found = scans(plan[0]["Plan"])
    assert len({scan["Relation Name"] for scan in found}) == partitions
    for scan in found:
        assert scan["Node Type"] in {"Index Scan", "Bitmap Heap Scan"}, scan["Node Type"]
        condition = scan.get("Index Cond") or scan.get("Recheck Cond")
        assert "load_xid >=" in condition
    # The SQL of a model reads the new events twice: once for the first event of each id, once for the rows.
    assert sum(scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0) for scan in found) <= 2 * 3


def test_a_run_with_nothing_to_do_writes_nothing(history: Database, small_settings: Settings) -> None:
    """No row, no report and no cursor changes. Only the run itself is recorded."""
    transform(history, small_settings)
    with history.connect(autocommit=True) as connection:
        look = "select (select array_agg(c order by model) from raw.cursors c), (select count(*) from raw.syncs)"
        before = connection.execute(look).fetchone()
        assert not any(table.rows for table in transform(history, small_settings))
        assert connection.execute(look).fetchone() == before
        runs = connection.execute("select status, count(*) from raw.transforms group by 1").fetchall()
    assert runs == [("success", 4)]


def test_an_idle_source_does_not_read_events_of_other_sources_again(
    history: Database, small_settings: Settings
) -> None:
    """Its cursors move past these events, without a report."""
    with history.connect(autocommit=True) as connection:
        connection.execute("insert into raw.sources (name, schema_name) values ('Idle', 'idle')")
        transform(history, small_settings, select=["email_opened"])
        connection.execute(HISTORY.replace("'m' || n", "'o' || n"))
        reports = connection.execute("select count(*) from raw.syncs where source = 'idle'").fetchone()

        statement = compiled(small_settings, "email_opened")
        connection.execute(
            "select set_config('enable_seqscan', 'off', false), set_config('loader.source', 'idle', false)"
        )
        previous = """
            select set_config('loader.previous_snapshot', snapshot::text, false)
            from raw.cursors where source = 'idle' and model = 'email_opened'
        """

        def passed_over() -> int:
            connection.execute(previous)
            explained = connection.execute(f"explain (analyze, format json) {statement}").fetchone()
            assert explained is not None
            return sum(scan.get("Rows Removed by Filter", 0) for scan in scans(explained[0][0]["Plan"]))

        assert passed_over() == 1000
        transform(history, small_settings, select=["email_opened"])
        assert passed_over() == 0
        assert connection.execute("select count(*) from raw.syncs where source = 'idle'").fetchone() == reports


def test_a_run_costs_the_same_however_many_runs_came_before(
    history: Database, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permanent process asks for the source of its flags as often in its third run as in its second.

    dbt looks through the stack for each. No run leaves a file open.
    """
    walks: list[int] = []

    def counted() -> str:
        walks[-1] += 1
        return "tests"

    monkeypatch.setattr(BehaviorFlagRendered, "_default_source", staticmethod(counted))
    files = []
    for _ in range(3):
        walks.append(0)
        transform(history, small_settings, select=["email_opened"])
        files.append(len(psutil.Process().open_files()))
    assert walks[0] == walks[1] == walks[2] > 0
    assert files[0] == files[1] == files[2]


def test_a_run_takes_no_lock_that_keeps_readers_out(history: Database, small_settings: Settings) -> None:
    """A reader in a long transaction neither waits for a run nor makes a run wait."""
    with psycopg.connect(history.url) as reader:
        before = reader.execute("select count(*) from iterable.email_opened").fetchone()
        assert any(table.rows for table in transform(history, small_settings))
        assert reader.execute("select count(*) from iterable.email_opened").fetchone() != before


def test_a_found_column_costs_no_further_scan(history: Database, small_settings: Settings, shared_home: Path) -> None:
    """With the column, a run reads the events by as many statements as without it: the insert.

    `raw.open_table` counts the events, whatever columns a table has.
    """
    log = shared_home / "embedded" / "postgres.log"

    def statements_of_a_run(number: int, properties: dict[str, object]) -> list[str]:
        with history.connect(autocommit=True) as connection, SchemaRegistry().transaction(connection) as seen:
            call = {"type": "track", "event": "Email Opened", "userId": "u", "messageId": f"s{number}"}
            line = json.dumps(call | {"properties": properties})
            land(connection, "iterable", "file", parse_lines(line.encode(), 0), seen)
        start = log.stat().st_size
        transform(history, small_settings, select=["email_opened"])
        text = log.read_bytes()[start:].decode()
        # A statement ends at the next entry, which may belong to another database of the same server.
        statements = [re.split(r"\n\d{4}-\d\d-\d\d ", each)[0] for each in text.split(" LOG:  statement: ")[1:]]
        return [each for each in statements if ".email_opened" in each and '"raw"."events"' in each]

    with EmbeddedServer(shared_home).connect("postgres", as_keeper=True) as connection:
        name = history.url.rsplit("/", 1)[1]
        connection.execute(f"alter database {name} set log_statement to 'all'")
    transform(history, small_settings, select=["email_opened"])
    without = statements_of_a_run(1, {"campaignId": 1})
    assert len(without) == 1
    statements_of_a_run(2, {"found": "x"})
    assert len(statements_of_a_run(3, {"found": "y"})) == len(without)
