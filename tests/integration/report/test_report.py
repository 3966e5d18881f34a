"""`loader report` on filled marts: its figures, its roles, its sources, and warehouses without data."""

import os
import re
import shlex
from collections.abc import Iterator
from datetime import timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader.cli.help import EXAMPLES
from loader.postgres.database import open_database
from loader.raw.readers import add_reader, remove_reader
from loader.settings import Settings
from tests.conftest import Loader, MakeOnce, loader_here, own_database
from tests.support.html_page import Element, read_page
from tests.support.sample_marts import HOSTILE_DAY, LAST, NAMES, fill_sample_marts

FIRST = LAST - timedelta(29)
IN_PERIOD = f"day between '{FIRST}' and '{LAST}'"

CHANNELS = {
    "all": "All channels",
    "email": "Email",
    "in_app": "In-app",
    "push": "Push",
    "sms": "SMS",
    "web_push": "Web push",
}


@pytest.fixture(scope="module")
def filled(server: str, home: Path, make_once: MakeOnce, served_template: str) -> Iterator[Settings]:
    """Return settings of a database with marts."""
    make_once("report_template", served_template, fill_sample_marts)
    with own_database(server, home, "report_template") as settings:
        yield settings


@pytest.fixture
def copied(server: str, home: Path, filled: Settings) -> Iterator[tuple[psycopg.Connection, Loader]]:
    """Return a connection to a copy of that database, which the test may change, and the command line on the copy."""
    with (
        own_database(server, home, "report_template") as settings,
        psycopg.connect(settings.database_url, autocommit=True) as connection,
    ):
        yield connection, loader_here(settings)


@pytest.fixture(scope="module")
def connection(filled: Settings) -> Iterator[psycopg.Connection]:
    """Return a connection to that database, on which names without a schema are those of the marts."""
    with psycopg.connect(filled.database_url, autocommit=True) as opened:
        opened.execute("set search_path = iterable_marts; set timezone = 'UTC'")
        yield opened


def page(loader: Loader, *arguments: str) -> Element:
    """Return the page that `loader report` prints."""
    done = loader("report", "--output", "-", *arguments)
    assert done.returncode == 0, done.stderr
    return read_page(done.stdout)


@pytest.fixture(scope="module")
def month(filled: Settings) -> Element:
    """Return the page of the last month of the sample."""
    return page(loader_here(filled), "--source", "Iterable", "--to", str(LAST))


def percent(share: Decimal | None) -> str:
    """Return a share as the page shows it."""
    if share is None:
        return "–"
    rounded = (share * 100).quantize(Decimal("0.1"), ROUND_HALF_UP)
    return "< 0.1 %" if share > 0 and not rounded else f"{rounded} %"


def one(connection: psycopg.Connection, query: str) -> Any:
    """Return the only value of a query."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_the_totals_agree_with_the_messages(connection: psycopg.Connection, month: Element) -> None:
    """A recipient counts once in a row, so the first row is no sum of the others."""
    expected = connection.execute(
        f"""
        select
            coalesce(channel, 'all'), sum(sends)::int, sum(delivered)::numeric / sum(sends),
            count(distinct recipient_key) filter (where delivered > 0)
        from messages
        where {IN_PERIOD}
        group by rollup (channel)
        """
    ).fetchall()
    rows = {row[0]: (row[1], row[4], row[5]) for row in month.section("channels").table()}
    assert rows == {
        CHANNELS[channel]: (f"{sends:,}", percent(delivered), f"{reached:,}")
        for channel, sends, delivered, reached in expected
    }
    reached = [int(row[5].replace(",", "")) for row in month.section("channels").table()]
    assert reached[0] < sum(reached[1:])


def test_the_days_agree_with_channel_daily(connection: psycopg.Connection, month: Element) -> None:
    """Every day and channel of the mart is in the table to unfold, and the chart has the same sums."""
    sends = one(connection, f"select sum(sends)::int from channel_daily where {IN_PERIOD}")
    rows = month.section("days").table()
    assert sum(int(row[2].replace(",", "")) for row in rows) == sends
    assert len(rows) == one(connection, f"select count(*) from channel_daily where channel <> 'none' and {IN_PERIOD}")
    titles = [title.text() for title in month.section("days").all("svg")[0].all("title")]
    assert len(titles) == 30
    assert sum(int(re.findall(r": ([\d,]+)", title)[0].replace(",", "")) for title in titles) == sends


def test_campaigns_sent_in_the_period_have_the_rates_of_the_mart(
    connection: psycopg.Connection, month: Element
) -> None:
    """A campaign without messages of other days has the same figures in campaign_performance."""
    expected = connection.execute(
        f"""
        select campaign_name, channel, sends, delivery_rate, unique_delivered, human_open_rate, human_click_rate,
            recipient_unsubscribe_rate
        from campaign_performance as campaigns
        where sends > 0 and not exists (
            select from messages
            where messages.campaign_id = campaigns.campaign_id and messages.channel = campaigns.channel
                and not {IN_PERIOD}
        )
        """
    ).fetchall()
    rows = {row[0]: row[2:8] for row in month.section("campaigns").table()}
    assert len(expected) >= 2
    for name, _, sends, delivered, reached, *rates in expected:
        assert rows[name] == [f"{sends:,}", percent(delivered), f"{reached:,}", *map(percent, rates)]


def test_the_funnel_counts_the_recipients_of_the_messages(connection: psycopg.Connection, month: Element) -> None:
    """A recipient has reached a step if one message or several together have reached this step and all before it."""
    steps = ("Sent", "Delivered", "Engaged", "Clicked", "Converted")
    people: dict[tuple[str, str], list[bool]] = {}
    for channel, recipient, *reached in connection.execute(
        f"""
        select channel, recipient_key, sends > 0, delivered > 0 or channel = 'in_app', human_opens + human_clicks > 0,
            human_clicks > 0 or (channel = 'push' and human_opens > 0),
            message_key in (select message_key from attributions where model = 'last_click')
        from messages
        where {IN_PERIOD}
        """
    ):
        known = people.setdefault((channel, recipient), [False] * 5)
        people[channel, recipient] = [a or b for a, b in zip(known, reached, strict=True)]
    expected = {
        CHANNELS[channel]: [
            f"{name} {sum(all(reached[: step + 1]) for (of, _), reached in people.items() if of == channel):,}"
            for step, name in enumerate(steps)
        ]
        for channel in {channel for channel, _ in people}
    }
    assert funnels(month) == expected
    assert int(expected["Email"][4].split()[1]) > 0


def funnels(shown: Element) -> dict[str, list[str]]:
    """Return the steps of each channel's funnel with their recipients."""
    [grid] = shown.section("funnel").all(of_class="funnels")
    found = {}
    for channel in (child for child in grid.children if isinstance(child, Element)):
        parts = [
            [part.text() for part in step.children if isinstance(part, Element)]
            for step in channel.all(of_class="step")
        ]
        found[channel.all("h3")[0].text()] = [f"{name} {numbers.split()[0]}" for name, _, numbers in parts]
    return found


def test_the_revenue_agrees_with_the_attributions(connection: psycopg.Connection, month: Element) -> None:
    """Each currency has its own sum, which is the sum of its campaigns."""
    expected = connection.execute(
        "select currency, sum(value) from attributions"
        f" where model = 'last_click' and message_{IN_PERIOD} group by currency order by currency"
    ).fetchall()
    sums: dict[str, Decimal] = {}
    for row in month.section("revenue").table():
        sums[row[6]] = sums.get(row[6], Decimal(0)) + Decimal(row[5].replace(",", ""))
    assert sums == dict(expected)
    assert sums
    values = [each.text() for each in month.section("headlines").all(of_class="value")]
    assert {f"{amount:,.2f} {currency}" for currency, amount in expected} <= set(values)


def test_machine_opens_and_link_clicks_agree_with_the_messages(connection: psycopg.Connection, month: Element) -> None:
    """The clicks of all links are the clicks of the period's messages."""
    totals = (
        "select sum(human_opens)::int, sum(opens - human_opens)::int from messages"
        f" where channel = 'email' and {IN_PERIOD}"
    )
    [email] = [row for row in month.section("machines").table() if row[0] == "Email"]
    assert tuple(int(cell.replace(",", "")) for cell in email[1:3]) == connection.execute(totals).fetchone()
    clicks = [(int(row[3]), int(row[4])) for row in month.section("links").table()]
    assert len(clicks) < 20
    assert [sum(each) for each in zip(*clicks, strict=True)] == list(
        connection.execute(
            f"select sum(human_clicks)::int, sum(clicks - human_clicks)::int from messages where {IN_PERIOD}"
        ).fetchone()
        or ()
    )


def test_the_domains_agree_with_deliverability_daily(connection: psycopg.Connection, month: Element) -> None:
    """Sums of events over days are the same in both; uniques are not added up."""
    expected = connection.execute(
        f"""
        select recipient_domain, to_char(sum(sends), 'FM999,999'), sum(delivered)::numeric / sum(sends),
            sum(hard_bounces)::numeric / sum(sends), sum(soft_bounces)::numeric / sum(sends),
            sum(block_bounces)::numeric / sum(sends), sum(complaints)::numeric / nullif(sum(delivered), 0)
        from deliverability_daily
        where {IN_PERIOD}
        group by recipient_domain
        """
    ).fetchall()
    rows = {row[0]: row[1:7] for row in month.section("deliverability").table()}
    assert rows == {domain: [sends, *map(percent, rates)] for domain, sends, *rates in expected}


def test_every_statement_runs_as_it_is_on_the_page(connection: psycopg.Connection, month: Element) -> None:
    """A person copies it into psql and gets the rows of the figure."""
    statements = month.statements()
    assert len(statements) == 13
    for statement in statements:
        assert connection.execute(statement.encode()).description
    [campaigns, *_] = month.section("campaigns").statements()
    assert len(connection.execute(campaigns.encode()).fetchall()) == len(month.section("campaigns").table())


def test_no_address_of_a_recipient_is_on_the_page(connection: psycopg.Connection, month: Element) -> None:
    """Nor is a user id."""
    text = month.text()
    found = connection.execute("select email from messages union select user_id from messages").fetchall()
    assert len(found) > 100
    assert [value for (value,) in found if value and value in text] == []


def test_a_quoted_schema_and_hostile_names_are_shown_as_text(copied: tuple[psycopg.Connection, Loader]) -> None:
    """Names are shown as text. They are neither elements of the page nor SQL."""
    connection, loader = copied
    connection.execute(
        """
        alter schema iterable_marts rename to "my ""shop""_marts";
        update raw.sources set name = 'My "Shop"', schema_name = 'my "shop"' where schema_name = 'iterable';
        """
    )
    shown = page(loader, "--source", 'My "Shop"', "--from", str(HOSTILE_DAY), "--to", str(HOSTILE_DAY))
    assert sorted(row[0] for row in shown.section("campaigns").table()) == sorted(NAMES)
    assert len(shown.all("script")) == 1
    assert 'My "Shop": messages and their results' in shown.all("h1")[0].text()
    for statement in shown.statements():
        assert connection.execute(statement.encode()).description


def test_several_sources_must_be_named(copied: tuple[psycopg.Connection, Loader]) -> None:
    """The message lists the sources with marts."""
    connection, loader = copied
    connection.execute("insert into raw.sources (name, schema_name) values ('Shop', 'shop'), ('App', 'app')")
    connection.execute("create schema shop_marts")
    for mart in ("messages", "channel_daily", "campaign_performance", "attributions"):
        connection.execute(f"create table shop_marts.{mart} (like iterable_marts.{mart})")
    done = loader("report")
    assert done.returncode == 2
    assert done.stderr == "Error: Several sources have marts (Iterable, Shop). Name the source with --source.\n"
    done = loader("report", "--source", "Nobody")
    assert done.returncode == 2
    assert "There is no source Nobody. The sources are: Iterable, Shop, App." in done.stderr
    done = loader("report", "--source", "App")
    assert done.returncode == 1
    assert "There are no marts of source App" in done.stderr


def test_two_sources_have_their_own_reports(copied: tuple[psycopg.Connection, Loader]) -> None:
    """A page has no message, campaign or order of the other source."""
    connection, loader = copied
    connection.execute("insert into raw.sources (name, schema_name) values ('Shop', 'shop'); create schema shop_marts")
    for (mart,) in connection.execute(
        "select table_name from information_schema.tables where table_schema = 'iterable_marts'"
    ).fetchall():
        connection.execute(f"create table shop_marts.{mart} as select * from iterable_marts.{mart}")
    by_channel = "channel {} 'sms'"
    for mart in ("messages", "channel_daily", "campaign_performance", "attributions"):
        connection.execute(f"delete from shop_marts.{mart} where {by_channel.format('<>')}")
        connection.execute(f"delete from iterable_marts.{mart} where {by_channel.format('=')}")
    shown = {source: page(loader, "--source", source, "--to", str(LAST)) for source in ("Iterable", "Shop")}
    channels = {source: {row[0] for row in each.section("channels").table()} for source, each in shown.items()}
    assert channels["Shop"] == {"All channels", "SMS"}
    assert channels["Iterable"] == {*CHANNELS.values()} - {"SMS"}
    for section in ("campaigns", "revenue", "funnel", "days"):
        assert "SMS" not in shown["Iterable"].section(section).text()
        assert "Email" not in shown["Shop"].section(section).text()
    assert [each.all("h1")[0].text().split(":")[0] for each in shown.values()] == ["Iterable", "Shop"]


def plan_nodes(connection: psycopg.Connection, statement: str) -> Iterator[dict[str, Any]]:
    """Run a statement and yield all nodes of its plan, with their counts."""

    def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield node
        for inner in node.get("Plans", []):
            yield from nodes(inner)

    [plan] = one(connection, f"explain (analyze, timing off, format json) {statement}")
    yield from nodes(plan["Plan"])


def test_no_statement_compares_all_pairs_of_two_tables(copied: tuple[psycopg.Connection, Loader]) -> None:
    """A planner with old statistics takes a long period for a few rows and joins it in a nested loop."""
    connection, loader = copied
    connection.execute("set enable_hashjoin = off; set enable_mergejoin = off")
    messages = one(connection, "select count(*) from iterable_marts.messages")
    assert one(connection, "select count(distinct message_key) from iterable_marts.attributions") > 1
    for statement in page(loader, "--days", "70", "--to", str(LAST)).statements():
        nodes = plan_nodes(connection, statement.rstrip(";"))
        assert sum(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"] for node in nodes) < messages


def test_the_messages_of_a_period_are_found_by_an_index(copied: tuple[psycopg.Connection, Loader]) -> None:
    """The cost of a report follows its period. A small table is read whole, so the test forbids that."""
    connection, loader = copied
    connection.execute("set enable_seqscan = off")
    shown = page(loader, "--from", str(LAST), "--to", str(LAST))
    for section in ("channels", "funnel", "campaigns", "deliverability", "machines", "completeness"):
        names = {node.get("Index Name") for node in plan_nodes(connection, shown.section(section).statements()[0][:-1])}
        assert "messages_day" in names, section


@pytest.fixture
def reader(filled: Settings) -> Iterator[Loader]:
    """Return the command line with the URL of a reader of one source."""
    with open_database(filled) as database, database.autocommit() as opened:
        # A role belongs to the server, which other processes of the run use too.
        name = f"report_reader_{os.getpid()}"
        made = add_reader(opened, database.url, name, ["iterable"])
        try:
            yield loader_here(filled.model_copy(update={"database_url": made.url}))
        finally:
            remove_reader(opened, name)


def test_a_reader_gets_the_same_figures(reader: Loader, month: Element) -> None:
    """The reader's only source needs no name. The page says what a reader cannot know."""
    shown = page(reader, "--to", str(LAST))
    for section in ("channels", "days", "campaigns", "deliverability", "links", "revenue", "machines"):
        assert shown.section(section).table() == month.section(section).table()
    assert "The role that made this report reads tables only." in shown.section("completeness").text()
    assert page(reader, "--source", "Iterable", "--to", str(LAST)).all("h1")[0].text() == shown.all("h1")[0].text()
    assert "There is no source" in reader("report", "--source", "Shop").stderr


def test_the_period_ends_with_the_last_day_that_has_events(filled: Settings, connection: psycopg.Connection) -> None:
    """The days of the sample are over, so the newest day is a whole day."""
    newest = one(connection, "select max(day) from channel_daily")
    shown = page(loader_here(filled), "--source", "iterable", "--days", "7")
    first = newest - timedelta(6)
    assert f"{first.day} {first:%b %Y} to {newest.day} {newest:%b %Y}, 7 days" in shown.all("header")[0].text()


def test_one_day_gives_a_bar_and_an_empty_day_no_table(filled: Settings) -> None:
    """A report of a day has a bar, and a report of nothing says so."""
    day = page(loader_here(filled), "--source", "iterable", "--from", str(LAST), "--to", str(LAST))
    assert len(day.section("days").all("svg")[0].all("g")) == 1
    nothing = page(loader_here(filled), "--source", "iterable", "--from", "2020-01-01", "--to", "2020-01-01")
    assert nothing.all("table") == []


def test_the_page_is_a_file_named_after_source_and_period(
    filled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command prints its path, and refuses a folder that does not exist."""
    monkeypatch.chdir(tmp_path)
    done = loader_here(filled)("report", "--from", str(LAST), "--to", str(LAST))
    assert done.stdout == f"report-iterable-{LAST}-{LAST}.html\n"
    read_page((tmp_path / done.stdout.strip()).read_text(encoding="utf-8"))
    done = loader_here(filled)("report", "--output", "absent/report.html")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be written to absent/report.html: No such file or directory." in done.stderr


@pytest.mark.parametrize("example", EXAMPLES["report"])
def test_d9_an_example_works_as_typed(
    filled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str
) -> None:
    """The examples of the help need marts, which the database of the other examples has not."""
    monkeypatch.chdir(tmp_path)
    done = loader_here(filled)(*shlex.split(example)[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / done.stdout.strip()).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "2026-03-01", "--days", "7"), "--from and --days both set the first day."),
        (("--from", "2026-03-02", "--to", "2026-03-01"), "before it begins"),
        (("--from", "yesterday"), "does not match the format"),
    ],
)
def test_a_wrong_period_is_refused(filled: Settings, arguments: tuple[str, ...], message: str) -> None:
    """The exit code is that of wrong use."""
    done = loader_here(filled)("report", "--source", "iterable", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_an_empty_warehouse_has_an_empty_report(copied: tuple[psycopg.Connection, Loader]) -> None:
    """The marts exist without rows from the first run on."""
    connection, loader = copied
    marts = one(
        connection,
        "select string_agg(format('%I.%I', schemaname, tablename), ', ') from pg_tables"
        " where schemaname = 'iterable_marts'",
    )
    connection.execute(f"truncate {marts}")
    shown = page(loader)
    assert shown.all("table") == []
    assert "No conversion is attributed" in shown.section("revenue").text()


def test_without_marts_the_message_names_the_next_step(served_loader: Loader) -> None:
    """The tables are there, but no run has filled marts."""
    done = served_loader("report")
    assert done.returncode == 1
    assert "There are no marts" in done.stderr
    assert "LOADER_MARTS=true" in done.stderr
