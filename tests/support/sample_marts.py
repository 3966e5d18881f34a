"""Fills the marts with a sample of nine weeks and the campaigns of a hostile sender."""

from datetime import date, timedelta
from typing import Any

import psycopg

from loader.events.naming import table_name
from loader.postgres.database import open_database
from loader.sample.events import generate_sample_events
from loader.settings import Settings
from tests.support.dbt_runs import run
from tests.support.factories import insert_payload

LAST = date(2026, 5, 3)

# The names of a hostile sender, whose campaigns come on the day after the sample.
HOSTILE_DAY = LAST + timedelta(1)
NAMES = [
    "<script>alert(1)</script>",
    'it\'s "quoted"; drop table raw.events; --',
    "%(marts)s {{ 7 * 7 }}",
    "☕" * 200,
]

VARIABLES = """
conversion_events:
    - {name: order, schema: public, table: orders, value: revenue, currency: currency, order_id: order_id}
"""


def _land(connection: psycopg.Connection, call: dict[str, Any]) -> None:
    """Land a call of the source Iterable without a collector."""
    insert_payload(connection, call["messageId"], call, collection=table_name(call["event"]))


def fill_sample_marts(settings: Settings, last_day: date = LAST) -> None:
    """Land a sample of nine weeks and the campaigns of a hostile sender, and fill the marts.

    Args:
        settings: The settings of the database.
        last_day: The last day of the sample, a Sunday. The hostile sender comes a day later.
    """
    sample = generate_sample_events(last_day, recipients=120)
    with open_database(settings) as database, database.connect() as connection:
        for call in sample.iterable:
            _land(connection, {"type": "track", **call})
        for number, name in enumerate(NAMES, 1):
            properties = {"campaignId": number, "campaignName": name, "messageId": f"h{number}", "url": name}
            for event in ("Email Delivered", "Email Link Clicked"):
                call = {
                    "type": "track",
                    "event": event,
                    "userId": f"hostile-{number}",
                    "timestamp": f"{last_day + timedelta(1)}T10:00:00Z",
                }
                _land(connection, call | {"messageId": f"{event}{number}", "properties": properties})
        connection.execute(
            'create table orders (id text, "timestamp" timestamptz, user_id text, email text, revenue numeric,'
            " currency text, order_id text)"
        )
        for call in sample.app:
            order = call["properties"]
            connection.execute(
                "insert into orders values (%s, %s, %s, %s, %s, %s, %s)",
                [
                    *(call["messageId"], call["timestamp"], call.get("userId"), order.get("email")),
                    *(order["revenue"], order["currency"], order["order_id"]),
                ],
            )
        connection.commit()
        run(database, settings.model_copy(update={"marts": True, "vars": VARIABLES}))
