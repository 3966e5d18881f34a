"""Every example event is loaded by the command line, and its table has every property."""

import csv
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from loader.settings import Settings
from tests.support.example_events import CASES
from tests.support.folders import DATA

TRACKS = {case: example["track"] for case, example in CASES.items()}

with (DATA / "property_catalog.csv").open(encoding="utf-8", newline="") as file:
    # (event, path of the property) → column and type, by the facts.
    CATALOG = {
        (row["collection"], row["property_json_name"]): (row["column_name_snake"], row["type"])
        for row in csv.DictReader(file)
    }

CONTEXT = {
    "integration.name": "context_integration_name",
    "integration.version": "context_integration_version",
    "library.name": "context_library_name",
    "library.version": "context_library_version",
    "traits.email": "context_traits_email",
    "ip": "context_ip",
    "userAgent": "context_user_agent",
    "os.name": "context_os_name",
}


@pytest.fixture(scope="module")
def connection(example_settings: Settings) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """Return a connection to a database with all examples, after `loader load` and `loader transform`."""
    with psycopg.connect(example_settings.database_url, row_factory=dict_row) as opened:
        yield opened


def leaves(value: dict[str, Any], event: str, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parts of an object that have columns: a declared property whole, and other values as leaves."""
    for name, inner in value.items():
        place = f"{path}.{name}" if path else name
        if isinstance(inner, dict) and (event, place) not in CATALOG:
            yield from leaves(inner, event, place)
        else:
            yield place, inner


@pytest.mark.parametrize("case", TRACKS)
def test_every_property_is_in_its_column_with_its_type(
    connection: psycopg.Connection[dict[str, Any]], case: str
) -> None:
    """The event's row has each property and context value in its own column, with its own type."""
    track = TRACKS[case]
    event = track["event"]
    table = event.lower().replace(" ", "_")
    row = connection.execute(f"select * from iterable.{table} where id = %s", (track["messageId"],)).fetchone()
    assert row is not None

    seen = {"id", "received_at", "uuid_ts"}
    for path, value in leaves(track["properties"], event):
        column, kind = CATALOG[event, path]
        seen.add(column)
        got = row[column]
        if kind == "json" and not isinstance(value, str):
            assert json.loads(got) == value, column
        elif kind == "double":
            assert got == Decimal(str(value)), column
        else:
            assert got == value, column
            assert type(got) is type(value), column
    for path, value in leaves(track["context"], event):
        assert row[CONTEXT[path]] == value
        seen.add(CONTEXT[path])

    layout = {
        "event": table,
        "event_text": event,
        "user_id": track.get("userId"),
        "anonymous_id": track.get("anonymousId"),
        "original_timestamp": track["originalTimestamp"],
    }
    assert {column: row[column] for column in layout} == layout
    for column, name in (("timestamp", "timestamp"), ("sent_at", "sentAt"), ("received_at", "receivedAt")):
        assert row[column].isoformat(timespec="milliseconds") == track[name].replace("Z", "+00:00")
        seen.add(column)
    others = {column: value for column, value in row.items() if column not in seen | set(layout)}
    assert {column for column, value in others.items() if value is not None} == set()


def test_tracks_has_each_event_once(connection: psycopg.Connection[dict[str, Any]]) -> None:
    """`tracks` has each event once, with its table's name."""
    wanted = {track["messageId"]: track["event"] for track in TRACKS.values()}
    rows = connection.execute("select id, event_text from iterable.tracks where id = any(%s)", [[*wanted]]).fetchall()
    assert {row["id"]: row["event_text"] for row in rows} == wanted
    assert len(rows) == len(TRACKS)


def test_no_event_or_value_is_lost(connection: psycopg.Connection[dict[str, Any]]) -> None:
    """No value exceeds its column, and the conservation law holds. Each event has landed by a webhook, too."""
    assert connection.execute("select * from raw.mismatches").fetchall() == []
    law = connection.execute("select * from raw.conservation").fetchone()
    assert law is not None
    assert law["accepted"] == law["in_collections"] == 2 * len(TRACKS)
