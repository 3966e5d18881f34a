"""The worked corners of the marts."""

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any

import psycopg
import pytest

from loader.events.naming import table_name
from loader.postgres.database import open_database
from loader.settings import Settings
from tests.conftest import own_database
from tests.support.marts.warehouse import fill, with_marts

DAY = "2026-03-04"


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
        MART_SETTINGS[:] = [with_marts(settings, MODELS + ORDERS)]
        sent = [name for (name,) in connection.execute("select distinct collection from raw.events")]
        fill(database, MART_SETTINGS[0], select=[*sent, "tag:marts"])
        connection.execute("set search_path = iterable_marts; set timezone = 'UTC'")
        yield connection


def rows(connection: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query, with numbers as plain numbers."""
    return [
        tuple(float(value) if type(value).__name__ == "Decimal" else value for value in row)
        for row in connection.execute(query).fetchall()
    ]


def test_a_human_opens_exclude_machines_in_any_order_of_times(corners: psycopg.Connection) -> None:
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


def test_d_a_message_without_a_send_counts_no_send(corners: psycopg.Connection) -> None:
    """No send is invented."""
    assert rows(
        corners,
        "select messages, messages_without_send, sends, unique_opens, open_rate from campaign_performance"
        " where campaign_id = 10",
    ) == [(1, 1, 0, 1, None)]


def test_e_bounces_have_classes_and_some_unsubscribes_have_no_message(corners: psycopg.Connection) -> None:
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


def test_f_a_repeated_state_continues_the_period_of_a_subscription(corners: psycopg.Connection) -> None:
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


def test_b_an_opened_push_gets_the_credit_of_an_order(corners: psycopg.Connection) -> None:
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


def test_g_attribution_models_choose_the_messages_of_a_conversion(corners: psycopg.Connection) -> None:
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


def test_skips_make_no_message_and_campaign_ids_have_one_form(corners: psycopg.Connection) -> None:
    """A skip makes no message, a bounced message keeps its open, and ids have one form."""
    assert rows(corners, "select sends, messages, skips from campaign_performance where campaign_id = 12") == [
        (3, 1, 1)
    ]
    assert rows(corners, "select delivered, opens from messages where campaign_id = 13") == [(0, 1)]
    assert rows(corners, "select campaign_id, sends from messages where message_key = 'm:none'") == [(None, 2)]
    assert rows(corners, "select messages from campaign_performance where channel = 'email' and campaign_id = 0") == [
        (1,)
    ]


def test_h_the_day_of_a_send_depends_on_the_time_zone(corners: psycopg.Connection) -> None:
    """A send at 03:00 UTC is a send of the day before in New York."""
    assert rows(corners, "select day from messages where campaign_id = 14") == [(date(2026, 3, 3),)]
    assert rows(corners, "select day from campaign_daily where campaign_id = 14") == [(date(2026, 3, 3),)]


def test_engagement_windows_end_at_as_of_date(corners: psycopg.Connection) -> None:
    """`as_of_date` before the last event leaves events out of the windows, and an engagement after it is active."""
    assert rows(
        corners,
        "select sends_7d, opens_7d, engagement_level, last_engaged_at, email from user_engagement"
        " where user_key = 'u:u1'",
    ) == [(1, 0, "active", moment("12:00:00"), "ann@example.com")]
    assert rows(corners, "select engagement_level from user_engagement where user_key = 'u:u6'") == [("unreached",)]
    assert rows(corners, "select count(*) - count(distinct user_key) from user_engagement") == [(0,)]
