"""Very long values: the part that notes keep, and runs that do not spell out numbers."""

import json
from collections.abc import Iterator

import psycopg
import pytest

from loader.events.model import Reason, Refused
from loader.events.segment import parse_lines
from loader.postgres.database import Database
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.settings import Settings
from tests.support.dbt_runs import run
from tests.support.served_tables import everything


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit."""
    with small.connect(autocommit=True) as opened:
        yield opened


def send(connection: psycopg.Connection, *properties: str) -> None:
    """Land events e0, e1, … whose properties are these texts."""
    lines = [
        f'{{"type":"track","event":"Email Opened","userId":"u","messageId":"e{number}","properties":{text}}}'
        for number, text in enumerate(properties)
    ]
    with SchemaRegistry().transaction(connection) as seen:
        land(connection, "iterable", "file", parse_lines("\n".join(lines).encode(), 0), seen)


def test_c10_no_more_than_a_thousand_characters_of_a_value_are_kept(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """A number is not spelled out, a text ends in an ellipsis, and a rebuild records the same notes."""
    send(
        connection,
        '{"campaignId":1e131071,"price":1.5}',
        json.dumps({"campaignId": "x" * 30_000}),
        json.dumps({"campaignId": "é" * 1000}),
        '{"campaignId":-1e99999,"price":2e131071}',
        '{"campaignId":7,"price":1e999}',
        '{"campaignId":7,"price":1e-5000}',
    )
    run(small, small_settings, "email_opened", "tracks")
    noted = connection.execute("select event_id, column_name, value from raw.mismatches order by 1, 2").fetchall()
    spelled = "a number of more than 1000 digits"
    assert noted == [
        ("e0", "campaign_id", spelled),
        ("e1", "campaign_id", "x" * 1000 + "…"),
        ("e2", "campaign_id", "é" * 1000),
        ("e3", "campaign_id", spelled),
        ("e3", "price", spelled),
        ("e5", "price", "0." + "0" * 998 + "…"),
    ]
    held = connection.execute("select id, campaign_id, price from iterable.email_opened order by id").fetchall()
    assert [row[1] for row in held] == [None, None, None, None, 7, 7]
    assert [row[2] and f"{row[2]:.1e}" for row in held] == ["1.5e+0", None, None, None, "1.0e+999", None]
    before = everything(connection)
    run(small, small_settings, "email_opened", "tracks", full_refresh=True)
    assert everything(connection) == before


def test_c10_a_text_column_keeps_every_digit(
    connection: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """Text is never cut. Only notes are cut, and columns of numbers have a limit."""
    send(connection, '{"note":1e1500}', '{"note":"x"}')
    run(small, small_settings, "email_opened", "tracks")
    assert connection.execute("select note from iterable.email_opened order by id").fetchall() == [
        ("1" + "0" * 1500,),
        ("x",),
    ]


def test_c10_a_detail_in_quarantine_is_bounded(connection: psycopg.Connection) -> None:
    """The message is kept whole, and its detail has at most a thousand characters."""
    refused = Refused(b"{}", 0, Reason.BAD_REQUEST, "x" * 5000)
    with SchemaRegistry().transaction(connection) as seen:
        land(connection, "iterable", "file", [refused], seen)
    assert connection.execute("select detail from raw.quarantine").fetchall() == [("x" * 999 + "…",)]
