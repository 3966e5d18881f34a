"""The laws of the marts on generated events: increments equal a rebuild, marts agree, and views survive."""

import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader.cli.output import show_status
from loader.events.naming import table_name
from loader.raw.readers import add_reader, remove_reader
from loader.raw.rescan import rescan
from loader.transform.dbt import log_file, transform
from loader.transform.status import read_status
from tests.conftest import MakeOnce, loader_here, own_database, restored
from tests.support.marts.variables import DEFAULT_MODELS, Variables
from tests.support.marts.warehouse import (
    Warehouse,
    fill,
    fill_in_parts,
    in_order,
    land_all,
    open_warehouse,
    with_marts,
)
from tests.support.nasty_events import CONVERSION, SALE, SIGNUP, TRACKED, Call, generate_nasty_events
from tests.support.quick_dbt import end_connections
from tests.support.served_tables import COLLECTIONS
from tests.support.waiting import wait_until

# Clocks go forward in New York on 8 March, in the middle of the events.
VARIABLES = Variables(
    marts_time_zone="America/New_York",
    machine_proxies=(" apple ", "Yahoo"),
    transactional_channel_ids=(3,),
    transactional_message_type_ids=(4,),
    conversion_events=(CONVERSION, TRACKED, SALE, SIGNUP),
    attribution_models=(
        *DEFAULT_MODELS,
        {"name": "linear", "position": "linear", "touch": "open", "window_hours": 336},
        {"name": "day", "position": "first", "touch": "send", "window_hours": 24},
        {"name": "sends", "position": "linear", "touch": "send", "window_hours": 72.5},
    ),
    primary_attribution_model="linear",
    default_currency="CHF",
    engagement_active_days=3,
    engagement_lapsing_days=7,
    as_of_date=date(2026, 3, 15),
)
SUMS = (
    "messages messages_without_send sends receipts bounces hard_bounces soft_bounces block_bounces other_bounces"
    " delivered opens human_opens clicks human_clicks complaints unsubscribes recipient_unsubscribes"
    " preference_visits uninstalls replies"
).split()
MARTS = ["tag:marts"]
# The collections of most tests, and the marts. A run of these models takes half the time of a run of all.
MAIL = ("email_delivered", "email_opened", "email_link_clicked")
MAIL_AND_MARTS = [*MAIL, *MARTS]


@pytest.fixture(scope="session")
def marts_template(make_once: MakeOnce, served_template: str) -> str:
    """Return the name of a database whose marts have got 400 events in two runs."""

    def make(settings: Any) -> None:
        with open_warehouse(settings, VARIABLES) as opened:
            fill_in_parts(opened, events=400, parts=2)

    make_once("marts_template", served_template, make)
    return "marts_template"


@contextmanager
def cloned(server: str, home: Path, template: str) -> Iterator[Warehouse]:
    """Yield a clone of a database."""
    with own_database(server, home, template) as settings, open_warehouse(settings, VARIABLES) as opened:
        yield opened


@pytest.fixture(scope="module")
def unchanged(server: str, home: Path, marts_template: str) -> Iterator[Warehouse]:
    """Return a clone of that database for tests that only read."""
    with cloned(server, home, marts_template) as opened:
        yield opened


@pytest.fixture
def two_senders(server: str, home: Path, marts_template: str) -> Iterator[Warehouse]:
    """Return a clone of that database for one test."""
    with cloned(server, home, marts_template) as opened:
        yield opened


@pytest.fixture
def warehouse(two_senders: Warehouse) -> Warehouse:
    """Return that clone without the second sender, whose marts take as long as those of the first."""
    two_senders.connection.execute("delete from raw.sources where schema_name = 'select'")
    return two_senders


def land_more(connection: psycopg.Connection, number: int, seed: int, *, of: Container[str] = COLLECTIONS) -> int:
    """Land more nasty events of known people and campaigns, but only those of some collections; return how many."""
    calls = [
        call | {"messageId": f"{seed}-{call['messageId']}"}
        for call in generate_nasty_events(number, seed).iterable
        if table_name(call["event"]) in of
    ]
    land_all(connection, [each._replace(seq=10_000_000 * seed + each.seq) for each in in_order({"iterable": calls})])
    return len(calls)


# Increments equal a rebuild, to the row.


def test_runs_make_the_expected_rows(unchanged: Warehouse) -> None:
    """Plain Python computes all marts from the served tables, by the contract alone. The later run was an increment."""
    assert all(oldest < version for version, oldest in unchanged.versions().values() if version > 1)
    unchanged.assert_expected(VARIABLES)
    unchanged.assert_expected(VARIABLES, "select")


def test_a_full_refresh_makes_the_same_rows_in_place(warehouse: Warehouse) -> None:
    """All rows are made again, also those of the marts that keep no column of the expected rows.

    The refresh keeps the table that a view depends on. The open transaction of a reader keeps its rows.
    """
    name = f"mart_reader_{warehouse.settings.database_url.rsplit('/', 1)[1]}"
    connection = warehouse.connection
    connection.execute("create view public.sent as select sum(sends) as sends from iterable_marts.campaign_performance")
    reader = add_reader(connection, warehouse.database.url, name)
    before = warehouse.contents()
    sent = warehouse.number("select sends from public.sent")
    query = "select sum(sends) from campaign_performance"
    connection.execute("update iterable_marts.campaign_performance set sends = sends + 1")
    try:
        with psycopg.connect(reader.url) as reading:
            reading.execute("set transaction isolation level repeatable read")
            wrong = reading.execute(query).fetchone()
            warehouse.fill(full_refresh=True, select=MARTS)
            assert reading.execute(query).fetchone() == wrong != (sent,)
            reading.rollback()
            assert reading.execute(query).fetchone() == (sent,)
    finally:
        remove_reader(connection, name)
    assert warehouse.contents() == before
    assert warehouse.number("select sends from public.sent") == sent
    assert all(version == oldest for version, oldest in warehouse.versions().values())


@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("events", "parts"),
    [
        pytest.param(1_500, 5, marks=pytest.mark.heavy),
        pytest.param(20_000, 1, marks=pytest.mark.soak),
        pytest.param(20_000, 20, marks=pytest.mark.soak),
    ],
)
def test_many_events_in_many_runs_make_the_expected_rows(
    server: str, home: Path, served_template: str, events: int, parts: int
) -> None:
    """Many events make the expected rows, and the same rows after a full refresh."""
    with own_database(server, home, served_template) as settings, open_warehouse(settings, VARIABLES) as opened:
        fill_in_parts(opened, events=events, parts=parts, with_found_columns=True)
        opened.assert_expected(VARIABLES)
        opened.assert_expected(VARIABLES, "select")
        before = opened.contents()
        opened.fill(full_refresh=True, select=MARTS)
        assert opened.contents() == before


def test_rows_that_a_rebuild_of_a_table_loses_leave_the_marts(warehouse: Warehouse) -> None:
    """No event tells of the rows. The marts are made again, because their input was."""
    sends = "select count(*) from iterable_marts.events where event = 'email_delivered'"
    before = warehouse.number(sends)
    warehouse.connection.execute("delete from raw.events where collection = 'email_delivered' and seq % 3 = 0")
    warehouse.fill(full_refresh=True, allow_loss=True, select=["iterable.email_delivered"])
    warehouse.fill(select=MARTS)
    assert warehouse.number(sends) < before
    warehouse.assert_expected(VARIABLES)


def test_a_column_that_was_filled_late_reaches_the_marts(warehouse: Warehouse) -> None:
    """While a reader keeps the column from the table, the mart of the events is as without it."""
    connection = warehouse.connection
    connection.execute("alter table iterable.email_opened drop column proxy_source")
    machines = "select count(*) from iterable_marts.events where event = 'email_opened' and is_machine"
    before = warehouse.number(machines)
    with warehouse.database.connect() as reader:
        reader.execute("select from iterable.email_opened limit 1")
        warehouse.fill(select=["email_opened"])
        warehouse.fill(select=["events"], full_refresh=True)
        without = warehouse.number(machines)
    connection.execute("update raw.held_tables set next_try_at = clock_timestamp()")
    warehouse.fill(select=MAIL_AND_MARTS)
    assert without < before == warehouse.number(machines)
    warehouse.assert_expected(VARIABLES)


def sign_up(number: int, who: str = "usr_1", **properties: Any) -> Call:
    """Return a call of an app that counts as a conversion."""
    return {
        "type": "track",
        "messageId": f"signup-{number}",
        "event": "Signup Completed",
        "userId": who,
        "timestamp": f"2026-03-1{number}T12:00:00.000Z",
        "properties": properties,
    }


def test_wider_columns_and_recorded_properties_reach_the_marts(warehouse: Warehouse) -> None:
    """A conversion's columns come and widen: by new events, by `loader rescan`, and by `loader widen`."""
    connection = warehouse.connection
    signups = "from iterable_marts.conversions where conversion_name = 'signup'"
    codes = f"select array_agg(order_id order by conversion_id) {signups}"
    values = f"select sum(value) {signups}"
    changed = ["found_collections", *MARTS]

    def land(*calls: Call) -> None:
        first = warehouse.number("select max(seq) + 1 from raw.events")
        land_all(connection, [each._replace(seq=first + each.seq) for each in in_order({"app": calls})])

    land(sign_up(1, code=7.0), sign_up(2, code=8))
    rescan(connection, "app")
    land(sign_up(3, code="A-1", amount=12.5))
    warehouse.fill(select=changed)
    assert warehouse.number(codes) == ["7", "8", None]
    assert warehouse.number(values) is None

    rescan(connection, "app")
    narrow = warehouse.settings.model_copy(update={"widen_bytes": 0})
    fill(warehouse.database, narrow, select=changed)
    assert warehouse.number(codes) == ["7", "8", None]
    assert warehouse.number(values) == 12.5

    fill(warehouse.database, narrow, select=changed, widen=True)
    assert warehouse.number(codes) == ["7.0", "8", "A-1"]
    warehouse.assert_expected(VARIABLES)


def test_dropped_and_restored_marts_are_made_again(warehouse: Warehouse) -> None:
    """A mart that another table has replaced is noticed, and so is a log that is gone. Then they follow new events."""
    before = warehouse.contents()
    warehouse.connection.execute(
        """
        drop table iterable_marts.messages cascade;
        drop table iterable_marts.int_changes_events, iterable_marts.int_changes_arrivals;
        create table iterable_marts.copied (like iterable_marts.campaign_performance including all);
        drop table iterable_marts.campaign_performance cascade;
        alter table iterable_marts.copied rename to campaign_performance
        """
    )
    warehouse.fill(select=MARTS)
    assert warehouse.contents() == before
    land_more(warehouse.connection, 60, seed=5, of=MAIL)
    warehouse.fill(select=MAIL_AND_MARTS)
    version, oldest = warehouse.versions()["messages"]
    assert version > oldest
    warehouse.assert_expected(VARIABLES)


@pytest.mark.heavy
def test_marts_restored_into_another_cluster_are_made_again(
    warehouse: Warehouse, other_server: str, home: Path
) -> None:
    """The snapshots of the dump mean nothing there, so the first run makes the marts again."""
    url = warehouse.database.url
    with restored(url, other_server, home) as settings, open_warehouse(settings, VARIABLES) as copy:
        copy.connection.execute("delete from raw.sources where schema_name = 'select'")
        land_more(copy.connection, 60, seed=6, of=MAIL)
        before = copy.versions()
        copy.fill(select=MAIL_AND_MARTS)
        for mart in ("events", "messages", "conversions"):
            version, oldest = copy.versions()[mart]
            assert before[mart][0] < version == oldest
        copy.assert_expected(VARIABLES)


def test_a_changed_variable_makes_the_marts_again(warehouse: Warehouse) -> None:
    """The run says which variable went from which value to which value."""
    changed = replace(
        VARIABLES,
        marts_time_zone="Asia/Kolkata",
        machine_proxies=("Gmail",),
        transactional_channel_ids=(1,),
        attribution_models=VARIABLES.attribution_models[1:],
        primary_attribution_model="day",
        default_currency="SEK",
        engagement_active_days=5,
        as_of_date=date(2026, 3, 12),
    )
    notes = " ".join(
        table.note
        for table in fill(warehouse.database, with_marts(warehouse.settings, changed), select=MARTS)
        if table.note
    )
    assert 'machine_proxies went from [" apple ", "Yahoo"] to ["Gmail"]' in notes
    for said in (
        'marts_time_zone went from "America/New_York" to "Asia/Kolkata"',
        "transactional_channel_ids went from [3] to [1]",
        'primary_attribution_model went from "linear" to "day"',
        'default_currency went from "CHF" to "SEK"',
        "engagement_active_days went from 3 to 5",
        'as_of_date went from "2026-03-15" to "2026-03-12"',
        "attribution_models went from",
    ):
        assert said in notes
    warehouse.assert_expected(changed)


# Agreement and cost.


def test_marts_read_the_events_of_their_tables(warehouse: Warehouse) -> None:
    """Events that land during a run are in no mart, because they are in no table."""
    land_more(warehouse.connection, 60, seed=49, of=MAIL)
    # The first mart lands events, which the models before it have not read.
    warehouse.connection.execute(
        """
        create function land_opens() returns trigger language plpgsql as $$
        begin
            insert into raw.events (source, collection, message_id, payload)
            select source, collection, 'during-' || message_id, payload
            from raw.events where collection = 'email_opened';
            return null;
        end $$;
        create trigger land_opens after insert on iterable_marts.events for each statement execute function land_opens()
        """
    )
    warehouse.fill(select=MAIL_AND_MARTS)
    assert warehouse.number("select sum(waiting) > 0 from raw.conservation")
    warehouse.assert_expected(VARIABLES)


def test_status_tells_the_age_of_the_marts_and_their_variables(
    two_senders: Warehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events that a run without marts has put into the tables wait for the marts."""
    landed = land_more(two_senders.connection, 40, seed=4, of=["email_delivered"])
    unfilled = two_senders.settings.model_copy(update={"marts": False})
    fill(two_senders.database, unfilled, select=["email_delivered", "tracks"])
    with two_senders.database.begin() as transaction:
        status = read_status(transaction)
    marts = {row["source"]: row for row in status.as_json()["marts"]}
    assert status.waiting == 0
    assert (marts["iterable"]["waiting"], marts["select"]["waiting"]) == (landed, 0)
    assert marts["iterable"]["age_seconds"] > 0
    assert marts["select"]["age_seconds"] is None
    assert marts["iterable"]["variables"]["marts_time_zone"] == "America/New_York"
    assert marts["iterable"]["variables"]["default_currency"] == "CHF"
    show_status(status)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["marts_time_zone", '"America/New_York"', "iterable,", "select"] in lines


def count_scans(warehouse: Warehouse, query: str) -> Any:
    """Return the result of a query of the server's counters, after each session of the last run has reported its own.

    A session may report late, but not later than its end.
    """
    connection = warehouse.connection
    end_connections(connection.info.dbname)
    left = "select count(*) from pg_stat_activity where datname = current_database() and application_name like '%dbt%'"
    wait_until(lambda: warehouse.number(left) == 0, "the sessions of dbt to end")
    connection.execute("select pg_stat_force_next_flush()")
    return warehouse.number(query)


def test_a_run_with_nothing_new_reads_no_mart(warehouse: Warehouse) -> None:
    """No mart moves, and the server counts no scan of one. The run before has emptied the logs.

    Only `int_conversions` and its log are read, because nothing else tells whether another product's table has new
    rows.
    """
    warehouse.fill(select=MARTS)
    scans = (
        "select sum(seq_scan + coalesce(idx_scan, 0)) from pg_stat_user_tables"
        " where schemaname = 'iterable_marts' and relname not like 'int\\_%conversion%'"
    )
    before, versions = count_scans(warehouse, scans), warehouse.versions()
    warehouse.fill(select=MARTS)
    assert warehouse.versions() == versions
    assert count_scans(warehouse, scans) == before


def test_an_increment_scans_no_history_and_has_no_quadratic_join(warehouse: Warehouse) -> None:
    """The server counts no sequential scan of a collection or of a mart that grows with the events.

    And no plan has a nested loop over two intermediate results, whatever the planner knows of them.
    """
    connection = warehouse.connection
    land_more(connection, 50, seed=17)
    fill(warehouse.database, warehouse.settings.model_copy(update={"marts": False}))
    growing = (
        "select jsonb_object_agg(schemaname || '.' || relname, seq_scan) from pg_stat_user_tables"
        " where schemaname = 'iterable' or (schemaname = 'iterable_marts' and relname in ('events', 'messages',"
        " 'campaign_recipients', 'int_sends', 'int_user_days', 'int_clicks', 'int_subscription_events', 'conversions',"
        " 'int_conversions', 'attributions', 'subscriptions', 'subscription_history'))"
    )
    before = count_scans(warehouse, growing)
    warehouse.fill(select=MARTS, log_sql=True)
    assert warehouse.number(
        "select version > oldest_version from raw.marts where (source, mart) = ('iterable', 'messages')"
    )
    assert count_scans(warehouse, growing) == before

    log = log_file(warehouse.settings).read_text(encoding="utf-8")
    statements = re.findall(
        r"with changed as materialized \(.*?count\(\*\) as changed_rows\s+from changes\n", log, re.DOTALL
    )
    assert len(statements) > 20
    for mart in warehouse.versions():
        connection.execute(f"set loader.since_{mart} = '0'")
    quadratic = [
        f"{written_table(statement)}: {node['Join Filter']}"
        for statement in statements
        for [plan] in connection.execute(f"explain (format json) {statement}")
        for node in nodes(plan[0]["Plan"])
        if node["Node Type"] == "Nested Loop" and "Join Filter" in node and all(map(is_intermediate, node["Plans"]))
    ]
    assert not quadratic


def written_table(statement: str) -> str:
    """Return the name of the table that a statement inserts into last."""
    return re.findall(r"insert into (\S+)", statement)[-1]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all nodes of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def is_intermediate(plan: dict[str, Any]) -> bool:
    """Return whether a node reads only what grows with the run: common table expressions, and logs of changes."""
    leaves = [node for node in nodes(plan) if not node.get("Plans")]
    return all(
        node.get("CTE Name", "steps") not in {"steps", "models", "as_of"}
        or (node["Node Type"] == "Seq Scan" and node["Relation Name"].startswith("int_changes_"))
        for node in leaves
    )


# Runs that fail.


def test_a_failing_mart_is_named_and_catches_up(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause comes first, the collections are served, the run counts as whole, and the next run fills the mart."""
    connection = warehouse.connection
    connection.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'no rows today'; end $$;"
        " create trigger refuse before insert on iterable_marts.messages execute function refuse()"
    )
    land_more(connection, 30, seed=3)
    monkeypatch.setenv("LOADER_MARTS", "true")
    monkeypatch.setenv("LOADER_VARS", warehouse.settings.vars)
    done = loader_here(warehouse.settings)("transform")
    assert done.returncode == 1
    first, second = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert first.startswith("Error: iterable_marts.messages was left as it was")
    assert "no rows today" in first
    assert second.endswith("were left as they were: Skipped after the failure of messages.")
    failed = {line.split()[0] for line in done.stdout.splitlines() if line.endswith("failed")}
    assert {"iterable_marts.messages", "iterable_marts.campaign_performance", "iterable_marts.funnel"} < failed

    latest = "select (whole, status) = (true, 'success') from raw.transforms order by started_at desc limit 1"
    assert warehouse.number(latest)
    assert warehouse.number("select waiting from raw.conservation where source = 'iterable'") == 0
    with warehouse.database.begin() as transaction:
        shown = {row["source"]: row for row in read_status(transaction).marts}["iterable"]
    assert shown["last_error"].startswith("messages: ")
    assert shown["failed"] > 5

    connection.execute("drop trigger refuse on iterable_marts.messages")
    warehouse.fill(select=MARTS)
    assert warehouse.number("select error from raw.marts where (source, mart) = ('iterable', 'messages')") is None
    warehouse.assert_expected(VARIABLES)


def test_wrong_variables_stop_the_marts_and_not_the_tables(warehouse: Warehouse) -> None:
    """The first error names a variable, and no mart is written. Values of a wrong type do not stop dbt either."""
    wrong = "{machine_proxies: 5, transactional_channel_ids: 5, conversion_events: 5, attribution_models: [{name: a}]}"
    land_more(warehouse.connection, 40, seed=8, of=MAIL)
    versions = warehouse.versions()
    settings, models = with_marts(warehouse.settings, wrong), [*MAIL_AND_MARTS, "tracks"]
    failed = [table for table in transform(warehouse.database, settings, select=models) if table.error]
    assert "The variable machine_proxies has a value that is not a list: 5." in failed[0].error
    assert all(table.is_mart for table in failed)
    assert warehouse.versions() == versions
    assert warehouse.number("select sum(waiting) from raw.conservation") == 0


# Conservation.


def test_counts_are_conserved(unchanged: Warehouse) -> None:
    """Every event of the collections is in `events`, and the sums of the marts agree."""
    served = sum(
        unchanged.number(f'select count(*) from iterable."{table}"')
        for (table,) in unchanged.connection.execute("select distinct event from iterable_marts.events").fetchall()
    )
    assert unchanged.number("select count(*) from iterable_marts.events") == served
    assert unchanged.number("select sum(events) from iterable_marts.channel_daily") == served
    sums = {
        mart: unchanged.connection.execute(
            f"select {', '.join(f'sum({name})' for name in SUMS)} from iterable_marts.{mart}"
        ).fetchone()
        for mart in ("campaign_performance", "template_performance", "campaign_daily", "campaign_recipients")
    }
    assert len(set(sums.values())) == 1
    of_messages = [
        {"messages": "count(*)", "messages_without_send": "count(*) filter (where not has_send)"}.get(
            name, f"sum({name})"
        )
        for name in SUMS
    ]
    total = unchanged.connection.execute(f"select {', '.join(of_messages)} from iterable_marts.messages").fetchone()
    assert total == sums["campaign_performance"]


def test_credits_and_values_are_conserved(unchanged: Warehouse) -> None:
    """Per model, the credits of a conversion sum to 1 and its values to its value; steps of a funnel never grow."""
    assert unchanged.number("select count(*) from iterable_marts.attributions") > 0
    assert (
        unchanged.number(
            "select count(*) from (select sum(credit) as credit, sum(attributions.value) as value,"
            " min(conversions.value) as whole from iterable_marts.attributions join iterable_marts.conversions"
            " using (conversion_name, conversion_id) group by model, conversion_name, conversion_id) as summed"
            " where credit <> 1 or value <> whole"
        )
        == 0
    )
    assert (
        unchanged.number(
            "select count(*) from iterable_marts.funnel as step join iterable_marts.funnel as later"
            " using (channel, campaign_id) where later.step = step.step + 1"
            " and later.recipients > step.recipients"
        )
        == 0
    )
    assert unchanged.number("select sum(revenue) > 0 from iterable_marts.campaign_conversions")


def test_a_source_has_marts_of_its_own_messages(unchanged: Warehouse) -> None:
    """A source with an event of a message has marts, whatever its name; a source without one has none."""
    assert unchanged.number('select count(*) from "select_marts".events') > 0
    assert unchanged.number("select to_regnamespace('app_marts') is null")


def test_subscription_periods_do_not_overlap(unchanged: Warehouse) -> None:
    """Each period ends where the next one begins."""
    assert unchanged.number("select count(*) from iterable_marts.subscription_history") > 0
    assert (
        unchanged.number(
            "select count(*) from iterable_marts.subscription_history as one"
            " join iterable_marts.subscription_history as other using (user_key, target_type, target_id)"
            " where one.valid_from < other.valid_from and coalesce(one.valid_to, 'infinity') > other.valid_from"
        )
        == 0
    )
