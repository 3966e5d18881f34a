"""The marts: their rows, how they follow the events, and what they leave alone."""

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any

import psycopg
import pytest

from loader.events.naming import table_name
from loader.postgres.database import Database, open_database
from loader.raw.readers import add_reader, remove_reader
from loader.raw.rescan import rescan
from loader.settings import Settings
from loader.transform.dbt import TableFilled, transform
from tests.conftest import own_database
from tests.support.marts.compare import assert_marts_equal
from tests.support.marts.expected import KEYS, expected_marts
from tests.support.marts.variables import Variables
from tests.support.nasty_events import CONVERSION, generate_nasty_events
from tests.support.served_tables import COLLECTIONS

DAY = "2026-03-04"


def with_marts(settings: Settings, **changes: Any) -> Settings:
    """Return settings with which a run fills the marts."""
    return settings.model_copy(update={"marts": True, **changes})


def fill(database: Database, settings: Settings, **options: Any) -> list[TableFilled]:
    """Run the transform; no table and no mart may fail."""
    filled = transform(database, settings, **options)
    failed = [f"{table.source}.{table.table}: {table.error}" for table in filled if table.error]
    assert not failed, "; ".join(failed)
    return filled


def land(connection: psycopg.Connection, message_id: str, call: Mapping[str, Any], *, source: str = "iterable") -> None:
    """Land a call without a collector or file."""
    connection.execute(
        "insert into raw.events (source, collection, message_id, payload) values (%s, %s, %s, %s)",
        [source, table_name(call["event"]), message_id, json.dumps(call)],
    )


def moment(time: str, day: str = DAY) -> datetime:
    """Return a time of a day in UTC."""
    return datetime.fromisoformat(f"{day}T{time}+00:00")


# The settings of the database of the corners.
MART_SETTINGS: list[Settings] = []


class Sender:
    """Lands the events of the worked corners; each has a new id unless one is given."""

    def __init__(self, connection: psycopg.Connection, prefix: str = "e") -> None:
        self._connection = connection
        self._prefix = prefix
        self._number = 0

    def __call__(
        self, event: str, time: str, *, day: str = DAY, who: Mapping[str, Any] | None = None, **properties: Any
    ) -> str:
        """Land an event of user u1, or of another person, and return its id."""
        self._number += 1
        given = properties.pop("id", None)
        message_id = given or f"{self._prefix}{self._number}"
        person = {"userId": "u1", "email": "ann@example.com"} if who is None else dict(who)
        if "email" in person:
            properties["email"] = person.pop("email")
        created = f"{day} {time} +00:00"
        payload = {"type": "track", "event": event, **person, "properties": {"createdAt": created, **properties}}
        land(self._connection, message_id, payload)
        return str(message_id)


ADDRESS = {"anonymousId": "ann@example.com"}


def send_corners(connection: psycopg.Connection) -> None:
    """Land the events of the corners A to F and H."""
    send = Sender(connection)
    # A: machines, proxies, disorder, one id twice.
    send("email_delivered", "10:00:00", campaignId=7, messageId="m1")
    send("email_opened", "10:00:03", campaignId=7, messageId="m1", proxySource="Apple")
    send("email_opened", "12:00:00", campaignId=7, messageId="m1", proxySource="Gmail", isBot=False)
    send("email_opened", "11:00:00", who=ADDRESS, campaignId=7, messageId="m1")
    link = "https://A.example.com/X?u=1#t"
    click = send("email_link_clicked", "11:30:00", campaignId=7, messageId="m1", url=link)
    send("email_link_clicked", "11:31:00", id=click, campaignId=7, messageId="other", url=link)
    # B: two devices.
    for _ in range(2):
        send("push_delivered", "10:00:00", campaignId=8, messageId="p1")
    send("push_bounced", "10:00:00", campaignId=8)
    send("push_opened", "10:00:30", campaignId=8, messageId="p1")
    # C: no message ids.
    send("in_app_opened", "09:00:00", campaignId=9)
    send("in_app_sent", "10:00:00", campaignId=9)
    send("in_app_opened", "10:30:00", campaignId=9)
    send("in_app_sent", "11:00:00", campaignId=9)
    send("in_app_opened", "11:00:00", campaignId=9)
    send("in_app_opened", "12:00:00", who=ADDRESS, campaignId=9)
    # D: the send was lost.
    send("email_opened", "10:00:00", campaignId=10, messageId="lost")
    # E: bounces and unsubscribes.
    other = {"userId": "u5", "email": "eve@example.com"}
    send("email_delivered", "10:00:00", who=other, campaignId=11, messageId="y")
    for state in ("SoftBounceGeneral", "MailBlockGeneral", "DNSFailure"):
        send("email_bounced", "10:01:00", who=other, campaignId=11, messageId="y", recipientState=state)
    send("unsubscribed", "10:02:00", who=other, messageId="y", unsubSource="HardBounce", channelIds=[1, 2])
    send("unsubscribed", "10:03:00", who=other, campaignId=11, unsubSource="EmailLink")
    send("unsubscribed", "10:04:00", who=other, unsubSource="API", emailListIds=[5])
    # F: subscriptions.
    friend = {"userId": "u6"}
    send("subscribed", "10:00:00", who=friend, emailListIds=[5])
    send("subscribed", "10:01:00", who=friend, emailListIds="[5]")
    send("unsubscribed", "10:02:00", who=friend, emailListId=5)
    send("subscribed", "10:02:00", who=friend, emailListIds=["5"])
    send("subscribed", "10:03:00", who=friend, emailListIds=[5, "x", 0], signupSource="API")
    # H: a day in New York.
    send("email_delivered", "03:00:00", campaignId=14, messageId="h")
    # More: a skip with the id of a message that was sent, a soft bounce with an open, and ids of several types.
    for campaign in ("12", 12.0, 12):
        send("email_delivered", "10:00:00", campaignId=campaign, messageId="s1")
    send("email_send_skip", "10:00:00", campaignId=12, messageId="s1", reason="DuplicateMarketingMessage")
    send("email_delivered", "10:00:00", campaignId=13, messageId="s2")
    send("email_bounced", "10:00:01", campaignId=13, messageId="s2", recipientState="SoftBounceGeneral")
    send("email_opened", "10:00:02", campaignId=13, messageId="s2")
    for campaign in (7.5, "n/a"):
        send("email_delivered", "10:00:00", campaignId=campaign, messageId="none")


GREG = {"userId": "u20", "email": "greg@example.com"}

MODELS = """
attribution_models:
    - {name: last_click, position: last, touch: click, window_hours: 168}
    - {name: first_click, position: first, touch: click, window_hours: 168}
    - {name: last_open, position: last, touch: open, window_hours: 72}
    - {name: first_open, position: first, touch: open, window_hours: 72}
    - {name: linear, position: linear, touch: open, window_hours: 336}
"""
ORDERS = """
marts_time_zone: America/New_York
as_of_date: 2026-03-03
conversion_events:
    - {name: order, schema: app, table: orders, value: revenue, currency: currency, order_id: order_id}
    - {name: absent, schema: app, table: no_such_table}
    - {name: valueless, schema: app, table: visits, value: no_such_column}
"""


def send_journeys(connection: psycopg.Connection) -> None:
    """Land the messages of corner G, and track the orders in a table of an app."""
    send = Sender(connection, "g")
    for campaign, message in ((1, "X"), (2, "Y"), (3, "Z")):
        send("email_delivered", "10:00:00", day="2026-03-01", who=GREG, campaignId=campaign, messageId=message)
    send("email_link_clicked", "12:00:00", day="2026-03-01", who=GREG, campaignId=1, messageId="X")
    send("email_link_clicked", "12:00:00", day="2026-03-03", who=GREG, campaignId=2, messageId="Y")
    send("email_opened", "12:00:00", who=GREG, campaignId=3, messageId="Z")
    send("email_link_clicked", "12:30:00", who=GREG, campaignId=3, messageId="Z", isBot=True)
    connection.execute(
        """
        create schema app;
        create table app.orders (
            id text, received_at timestamptz default now(), "timestamp" timestamptz, user_id text, email text,
            revenue text, currency text, order_id text
        );
        create table app.visits (id bigint, "timestamp" text, user_id text);
        insert into app.orders (id, "timestamp", user_id, email, revenue, currency, order_id) values
        ('b1', '2026-03-04 11:00:00+00', 'u1', null, '10', 'eur', null),
        ('o1', '2026-03-04 13:00:00+00', 'u20', null, '100', 'USD', 'A'),
        ('o2', '2026-03-04 13:00:01+00', 'u20', null, '100', 'USD', 'A'),
        ('o3', '2026-03-08 12:00:00+00', null, ' Greg@Example.com ', '7', 'USD', 'B'),
        ('o4', '2026-03-08 12:00:00+00', 'u21', 'greg@example.com', '9', 'USD', 'C'),
        ('late', '2026-03-04 11:30:00+00', 'u1', null, null, null, null);
        insert into app.visits values
        (1, '2026-03-04T10:00:30', 'u1'), (2, 'yesterday', 'u1'), (null, '2026-03-04T10:00:30', 'u1');
        """
    )


@pytest.fixture(scope="module")
def corners(server: str, home: Any, served_template: str) -> Iterator[psycopg.Connection]:
    """Return a connection to a database with the marts of the worked corners."""
    with (
        own_database(server, home, served_template) as settings,
        open_database(settings) as database,
        database.connect(autocommit=True) as connection,
    ):
        send_corners(connection)
        send_journeys(connection)
        MART_SETTINGS[:] = [with_marts(settings, vars=MODELS + ORDERS)]
        fill(database, MART_SETTINGS[0])
        connection.execute("set search_path = iterable_marts; set timezone = 'UTC'")
        yield connection


def rows(connection: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query, with numbers as plain numbers."""
    return [
        tuple(float(value) if type(value).__name__ == "Decimal" else value for value in row)
        for row in connection.execute(query).fetchall()
    ]


def test_a_machines_and_disorder(corners: psycopg.Connection) -> None:
    """Opens of Apple's proxy are a machine's, times come in any order, and an id counts once."""
    assert rows(
        corners,
        "select opens, human_opens, clicks, first_open_at, first_human_open_at, seconds_to_first_open,"
        " seconds_to_first_click, delivered, user_key from messages where campaign_id = 7",
    ) == [(3, 2, 1, moment("10:00:03"), moment("11:00:00"), 3600, 5400, 1, "u:u1")]
    assert rows(
        corners, "select unique_opens, open_rate, click_to_open_rate from campaign_performance where campaign_id = 7"
    ) == [(1, 1.0, 1.0)]
    assert rows(corners, "select link, clicks, share_of_human_clicks from link_performance where campaign_id = 7") == [
        ("https://a.example.com/X", 1, 1.0)
    ]


def test_b_two_devices_are_one_message(corners: psycopg.Connection) -> None:
    """A bounce without a message id belongs to the send of its second, and takes one of two devices."""
    assert rows(
        corners, "select message_key, sends, bounces, delivered, opens, clicks from messages where campaign_id = 8"
    ) == [("m:p1", 2, 1, 1, 1, 0)]
    assert rows(corners, "select delivery_rate from campaign_performance where campaign_id = 8") == [(0.5,)]


def test_c_events_without_message_ids_belong_to_the_last_send(corners: psycopg.Connection) -> None:
    """An event before all sends, or of another person, makes a message without a send."""
    assert rows(
        corners, 'select message_key, sends, opens from messages where campaign_id = 9 order by message_key collate "C"'
    ) == [
        ("f:in_app:9:-:e:ann@example.com", 0, 1),
        ("f:in_app:9:-:u:u1", 0, 1),
        ("f:in_app:9:1772618400:u:u1", 1, 1),
        ("f:in_app:9:1772622000:u:u1", 1, 1),
    ]


def test_d_a_lost_send_is_counted_above_the_line_only(corners: psycopg.Connection) -> None:
    """No send is invented."""
    assert rows(
        corners,
        "select messages, messages_without_send, sends, unique_opens, open_rate from campaign_performance"
        " where campaign_id = 10",
    ) == [(1, 1, 0, 1, None)]


def test_e_bounces_and_unsubscribes(corners: psycopg.Connection) -> None:
    """Bounces have classes, and an unsubscribe belongs to a message only if the event names one."""
    assert rows(
        corners,
        "select delivered, bounces, soft_bounces, block_bounces, bounce_class, unsubscribes, recipient_unsubscribes"
        " from messages where campaign_id = 11",
    ) == [(0, 3, 2, 1, "block", 2, 1)]
    assert rows(corners, "select bounce_rate from campaign_performance where campaign_id = 11") == [(3.0,)]
    assert rows(corners, "select message_key from events where unsubscribe_class = 'system' and user_id = 'u5'") == [
        (None,)
    ]
    assert rows(corners, "select target_type, target_id from subscriptions where user_key = 'u:u5' order by 1, 2") == [
        ("channel", 1),
        ("channel", 2),
        ("list", 5),
        ("unspecified", 0),
    ]


def test_f_periods_of_a_subscription(corners: psycopg.Connection) -> None:
    """A repeated state continues a period, and an unsubscribe wins its second."""
    assert rows(
        corners,
        "select valid_from, valid_to, state, source from subscription_history where user_key = 'u:u6' order by 1",
    ) == [
        (moment("10:00:00"), moment("10:02:00"), "subscribed", None),
        (moment("10:02:00"), moment("10:03:00"), "unsubscribed", None),
        (moment("10:03:00"), None, "subscribed", "API"),
    ]
    assert rows(corners, "select state, since, source, changes, events from subscriptions where user_key = 'u:u6'") == [
        ("subscribed", moment("10:03:00"), "API", 2, 5)
    ]


def test_b_a_tap_earns_the_order(corners: psycopg.Connection) -> None:
    """The opened push is worth a click in attribution and in the funnel."""
    assert rows(
        corners,
        "select conversions, revenue, currency, revenue_per_thousand from campaign_conversions"
        " where campaign_id = 8 and model = 'last_click' and conversion_name = 'order' and currency = 'EUR'",
    ) == [(1.0, 10.0, "EUR", 10000.0)]
    assert (
        rows(corners, "select recipients, share_of_previous from funnel where campaign_id = 8 order by step")
        == [(1, 1.0)] * 5
    )


def test_g_models_choose_messages(corners: psycopg.Connection) -> None:
    """Windows include both ends, an order counts once, and two ids with one address are two people."""
    assert rows(corners, "select conversion_id, order_id from conversions where order_id is not null order by 1") == [
        ("o1", "A"),
        ("o3", "B"),
        ("o4", "C"),
    ]
    columns = "model, message_key, credit, value"
    chosen = f"select {columns} from attributions where conversion_id = '{{}}' and model {{}} order by 1, 2"
    assert rows(corners, chosen.format("o1", "<> 'linear'")) == [
        ("first_click", "m:X", 1.0, 100.0),
        ("first_open", "m:Y", 1.0, 100.0),
        ("last_click", "m:Y", 1.0, 100.0),
        ("last_open", "m:Z", 1.0, 100.0),
    ]
    assert rows(corners, chosen.format("o1", "= 'linear'")) == [
        ("linear", "m:X", 0.333333, 33.333333),
        ("linear", "m:Y", 0.333333, 33.333333),
        ("linear", "m:Z", 0.333334, 33.333334),
    ]
    assert rows(corners, chosen.format("o3", "<> 'linear'")) == [
        ("first_click", "m:X", 1.0, 7.0),
        ("last_click", "m:Y", 1.0, 7.0),
    ]
    assert rows(corners, chosen.format("o4", "<> ''")) == []


def test_a_conversion_at_the_second_of_the_click_is_attributed(corners: psycopg.Connection) -> None:
    """A conversion without a value has none, and a table without the value column has conversions."""
    assert rows(
        corners,
        "select conversion_name, value, currency, seconds_to_convert from attributions"
        " where conversion_id in ('late', '1') and model = 'last_click' order by 1",
    ) == [("order", None, "X" * 3, 0), ("valueless", None, "X" * 3, 0)]
    assert rows(corners, "select conversion_id from conversions where conversion_name = 'valueless'") == [("1",)]


def test_late_rows_of_another_product_s_table_are_found(corners: psycopg.Connection) -> None:
    """Rows that come later are conversions of the next run, and an earlier event of an order replaces the later."""
    corners.execute(
        "insert into app.orders values ('o0', now(), '2026-03-04 12:59:00+00', 'u20', null, '90', 'USD', 'A')"
    )
    with open_database(MART_SETTINGS[0]) as database:
        fill(database, MART_SETTINGS[0], select=["tag:marts"])
    assert rows(corners, "select conversion_id, value from conversions where order_id = 'A'") == [("o0", 90.0)]
    assert rows(corners, "select value from attributions where conversion_id = 'o0' and model = 'last_click'") == [
        (90.0,)
    ]


def test_more_corners(corners: psycopg.Connection) -> None:
    """A skip makes no message, a bounced message keeps its open, and ids have one form."""
    assert rows(corners, "select sends, messages, skips from campaign_performance where campaign_id = 12") == [
        (3, 1, 1)
    ]
    assert rows(corners, "select delivered, opens from messages where campaign_id = 13") == [(0, 1)]
    assert rows(corners, "select campaign_id, sends from messages where message_key = 'm:none'") == [(None, 2)]
    assert rows(corners, "select messages from campaign_performance where channel = 'email' and campaign_id = 0") == [
        (1,)
    ]


def test_h_a_day_is_a_day_of_the_zone(corners: psycopg.Connection) -> None:
    """A send at 03:00 UTC is a send of the day before in New York."""
    assert rows(corners, "select day from messages where campaign_id = 14") == [(date(2026, 3, 3),)]
    assert rows(corners, "select day from campaign_daily where campaign_id = 14") == [(date(2026, 3, 3),)]


def test_engagement_counts_days(corners: psycopg.Connection) -> None:
    """`as_of_date` before the last event leaves events out of the windows, and an engagement after it is active."""
    assert rows(
        corners,
        "select sends_7d, opens_7d, engagement_level, last_engaged_at, email from user_engagement"
        " where user_key = 'u:u1'",
    ) == [(1, 0, "active", moment("12:00:00"), "ann@example.com")]
    assert rows(corners, "select engagement_level from user_engagement where user_key = 'u:u6'") == [("unreached",)]
    assert rows(corners, "select count(*) - count(distinct user_key) from user_engagement") == [(0,)]


APP_ORDERS = f"conversion_events: [{json.dumps(CONVERSION)}]\nas_of_date: 2026-03-15\n"

SUMS = (
    "messages messages_without_send sends receipts bounces hard_bounces soft_bounces block_bounces other_bounces"
    " delivered opens human_opens clicks human_clicks complaints unsubscribes recipient_unsubscribes"
    " preference_visits uninstalls replies"
).split()


def read_rows(connection: psycopg.Connection, table: str) -> list[dict[str, Any]]:
    """Return all rows of a table."""
    cursor = connection.execute(f"select * from {table}")
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


class Warehouse:
    """A database with generated events, whose marts tests compare."""

    def __init__(self, database: Database, settings: Settings, connection: psycopg.Connection) -> None:
        self.database = database
        self.settings = settings
        self.connection = connection

    def fill(self, **options: Any) -> list[TableFilled]:
        """Run the transform with marts."""
        return fill(self.database, self.settings, **options)

    def tables(self) -> list[str]:
        """Return the names of the marts, internal ones too."""
        query = (
            "select table_name from information_schema.tables where table_schema = 'iterable_marts'"
            " and table_name not like 'int\\_changes\\_%' order by 1"
        )
        return [str(name) for (name,) in self.connection.execute(query)]

    def contents(self) -> dict[str, list[str]]:
        """Return the rows of all marts."""
        return {
            name: sorted(map(repr, self.connection.execute(f'select * from iterable_marts."{name}"').fetchall()))
            for name in self.tables()
        }

    def versions(self) -> dict[str, tuple[int, int]]:
        """Return the version and the oldest version of the log, by mart."""
        return {
            mart: (version, oldest)
            for mart, version, oldest in self.connection.execute(
                "select mart, version, oldest_version from raw.marts where source = 'iterable'"
            )
        }

    def number(self, query: str) -> Any:
        """Return the value of a query of one value."""
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return row[0]


@pytest.fixture(scope="module")
def generated(server: str, home: Any, served_template: str) -> Iterator[Warehouse]:
    """Return a database whose marts were filled in three runs."""
    with (
        own_database(server, home, served_template) as settings,
        open_database(settings) as database,
        database.connect(autocommit=True) as connection,
    ):
        connection.execute("set timezone = 'UTC'")
        warehouse = Warehouse(database, with_marts(settings, vars=APP_ORDERS), connection)
        connection.execute("insert into raw.sources (name, schema_name) values ('Select', 'select'), ('App', 'app')")
        land(connection, "other", {"type": "track", "event": "Email Opened", "userId": "u1"}, source="select")
        nasty = generate_nasty_events(1_500)
        for part in range(3):
            for calls, source in ((nasty.iterable, "iterable"), (nasty.app, "app")):
                for call in calls[part::3]:
                    land(connection, call["messageId"], call, source=source)
            rescan(connection, "app")
            warehouse.fill()
        yield warehouse


def test_increments_equal_a_rebuild(generated: Warehouse) -> None:
    """Three runs and a full refresh make the same rows, and the later runs were increments."""
    assert all(oldest < version for version, oldest in generated.versions().values() if version > 1)
    before = generated.contents()
    generated.fill(full_refresh=True, select=["tag:marts"])
    assert generated.contents() == before
    assert all(version == oldest for version, oldest in generated.versions().values())


def test_the_rows_are_those_of_an_independent_computation(generated: Warehouse) -> None:
    """Plain Python computes all marts from the served tables, by the contract alone."""
    connection = generated.connection
    tables = {name: read_rows(connection, f'iterable."{name}"') for name in COLLECTIONS}
    orders = {("app", "order_completed"): read_rows(connection, "app.order_completed")}
    variables = Variables(conversion_events=(CONVERSION,), as_of_date=date(2026, 3, 15))
    assert_marts_equal(
        expected_marts(tables, orders, variables),
        {mart: read_rows(connection, f'iterable_marts."{mart}"') for mart in KEYS},
    )


def test_counts_are_conserved(generated: Warehouse) -> None:
    """Every event of the collections is in `events`, and the sums of the marts agree."""
    served = sum(
        generated.number(f'select count(*) from iterable."{table}"')
        for (table,) in generated.connection.execute("select distinct event from iterable_marts.events").fetchall()
    )
    assert generated.number("select count(*) from iterable_marts.events") == served
    assert generated.number("select sum(events) from iterable_marts.channel_daily") == served
    sums = {
        mart: generated.connection.execute(
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
    total = generated.connection.execute(f"select {', '.join(of_messages)} from iterable_marts.messages").fetchone()
    assert total == sums["campaign_performance"]


def test_credits_and_values_are_conserved(generated: Warehouse) -> None:
    """Per model, the credits of a conversion sum to 1 and its values to its value; steps of a funnel never grow."""
    assert generated.number("select count(*) from iterable_marts.attributions") > 0
    assert (
        generated.number(
            "select count(*) from (select sum(credit) as credit, sum(attributions.value) as value,"
            " min(conversions.value) as whole from iterable_marts.attributions join iterable_marts.conversions"
            " using (conversion_name, conversion_id) group by model, conversion_name, conversion_id) as summed"
            " where credit <> 1 or value <> whole"
        )
        == 0
    )
    assert (
        generated.number(
            "select count(*) from iterable_marts.funnel as step join iterable_marts.funnel as later"
            " using (channel, campaign_id) where later.step = step.step + 1"
            " and later.recipients > step.recipients"
        )
        == 0
    )
    assert generated.number("select sum(revenue) > 0 from iterable_marts.campaign_conversions")


def test_a_source_has_marts_of_its_own_messages(generated: Warehouse) -> None:
    """A source with an event of a message has marts, whatever its name; a source without one has none."""
    assert generated.number('select count(*) from "select_marts".messages') == 0
    assert generated.number('select count(*) from "select_marts".events') == 1
    assert generated.number("select to_regnamespace('app_marts') is null")


def test_subscription_periods_do_not_overlap(generated: Warehouse) -> None:
    """Each period ends where the next one begins."""
    assert generated.number("select count(*) from iterable_marts.subscription_history") > 0
    assert (
        generated.number(
            "select count(*) from iterable_marts.subscription_history as one"
            " join iterable_marts.subscription_history as other using (user_key, target_type, target_id)"
            " where one.valid_from < other.valid_from and coalesce(one.valid_to, 'infinity') > other.valid_from"
        )
        == 0
    )


def test_a_run_with_nothing_new_reads_no_mart(generated: Warehouse) -> None:
    """No mart moves, and the server counts no scan of one."""
    generated.fill(select=["tag:marts"])
    scans = "select sum(seq_scan + coalesce(idx_scan, 0)) from pg_stat_user_tables where schemaname = 'iterable_marts'"
    flush = "select pg_stat_force_next_flush()"
    generated.connection.execute(flush)
    before, versions = generated.number(scans), generated.versions()
    generated.fill(select=["tag:marts"])
    assert generated.versions() == versions
    assert generated.number(scans) == before


def test_an_increment_scans_no_table_of_the_history(generated: Warehouse) -> None:
    """The server counts no sequential scan of a collection or of a mart that grows with the events."""
    connection = generated.connection
    for call in generate_nasty_events(50, seed=17).iterable:
        land(connection, f"more-{call['messageId']}", call)
    fill(generated.database, generated.settings.model_copy(update={"marts": False}))
    growing = (
        "select jsonb_object_agg(schemaname || '.' || relname, seq_scan) from pg_stat_user_tables"
        " where schemaname = 'iterable' or (schemaname = 'iterable_marts' and relname in ('events', 'messages',"
        " 'campaign_recipients', 'int_sends', 'int_user_days', 'int_clicks', 'int_subscription_events', 'conversions'))"
    )
    connection.execute("select pg_stat_force_next_flush()")
    before = generated.number(growing)
    generated.fill(select=["tag:marts"])
    assert generated.number(
        "select version > oldest_version from raw.marts where (source, mart) = ('iterable', 'messages')"
    )
    assert generated.number(growing) == before


def test_a_failing_mart_is_named_and_catches_up(generated: Warehouse) -> None:
    """The collections are served, the run counts as whole, and the next run fills the mart."""
    connection = generated.connection
    connection.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'no rows today'; end $$;"
        " create trigger refuse before insert on iterable_marts.messages execute function refuse()"
    )
    land(connection, "late", {"type": "track", "event": "Email Opened", "userId": "u", "properties": {"campaignId": 3}})
    failed = [table for table in transform(generated.database, generated.settings) if table.error]
    assert [(table.source, table.table) for table in failed] == [("iterable_marts", "messages")]
    assert generated.number("select count(*) from iterable.email_opened where id = 'late'") == 1
    latest = "select (whole, status) = (true, 'success') from raw.transforms order by started_at desc limit 1"
    assert generated.number(latest)
    assert "no rows today" in generated.number(
        "select error from raw.marts where (source, mart) = ('iterable', 'messages')"
    )

    connection.execute("drop trigger refuse on iterable_marts.messages")
    generated.fill(select=["tag:marts"])
    assert generated.number("select error from raw.marts where (source, mart) = ('iterable', 'messages')") is None
    before = generated.contents()
    generated.fill(full_refresh=True, select=["tag:marts"])
    assert generated.contents() == before


def test_views_and_grants_survive_and_readers_see_marts(generated: Warehouse) -> None:
    """A full refresh keeps the table that a view of a team depends on."""
    name = f"mart_reader_{generated.settings.database_url.rsplit('/', 1)[1]}"
    connection = generated.connection
    connection.execute("create view public.sent as select sum(sends) as sends from iterable_marts.campaign_performance")
    reader = add_reader(connection, generated.database.url, name)
    try:
        generated.fill(full_refresh=True, select=["tag:marts"])
        with psycopg.connect(reader.url, autocommit=True) as reading:
            counted = reading.execute("select sum(sends) from campaign_performance").fetchone()
        assert counted == (generated.number("select sends from public.sent"),)
    finally:
        remove_reader(connection, name)
        connection.execute("drop view public.sent")


def test_a_changed_variable_makes_the_marts_again(generated: Warehouse) -> None:
    """The run says which variable changed."""
    generated.fill(select=["tag:marts"])
    before, versions = generated.contents(), generated.versions()
    generated.connection.execute(
        """update raw.marts set variables = variables || '{"machine_proxies": ["Gmail"]}' where mart = 'events'"""
        " and source = 'iterable'"
    )
    notes = [table.note for table in generated.fill(select=["tag:marts"]) if table.note]
    assert notes == ['iterable_marts was made again: machine_proxies went from ["Gmail"] to ["Apple"].']
    assert generated.versions()["messages"] > versions["messages"]
    assert generated.contents() == before


def test_a_wrong_variable_stops_the_marts(generated: Warehouse) -> None:
    """The error names the variable, and no mart is written."""
    wrong = generated.settings.model_copy(update={"vars": APP_ORDERS + "marts_time_zone: Nowhere"})
    versions = generated.versions()
    (failed,) = [table for table in transform(generated.database, wrong, select=["tag:marts"]) if table.error]
    assert "marts_time_zone" in failed.error
    assert generated.versions() == versions
