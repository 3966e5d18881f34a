"""Every example of a webhook's body becomes the same row as its track call."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from loader.events.formats import ITERABLE_WEBHOOK
from loader.settings import Settings
from tests.support.example_events import CASES, accepted

# Ids and times of the delivery itself.
DELIVERY = {"id", "received_at", "sent_at", "uuid_ts"}
# Fields of Iterable's body that Segment leaves out; the loader keeps them.
KEPT = {
    event: {"platform_endpoint", "payload", "sound", "badge", "deeplink_ios", "deeplink_android"}
    for event in ("Push Delivered", "Push Bounced", "Push Opened", "Mobile App Uninstalled")
} | {
    "Subscribed": {"public_id_string"},
    # One example has a user agent and no system, and another has both. The loader treats both alike.
    "Hosted Unsubscribe Click": {"context_os_name"},
}


@pytest.fixture(scope="module")
def ids() -> dict[str, str]:
    """Return the id of each webhook's event, by case."""
    return {case: accepted(ITERABLE_WEBHOOK, example["webhook"]).message_id for case, example in CASES.items()}


@pytest.fixture(scope="module")
def connection(example_settings: Settings) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """Return a connection to a database with both forms of every example."""
    with psycopg.connect(example_settings.database_url, row_factory=dict_row) as opened:
        yield opened


@pytest.mark.parametrize("case", CASES)
def test_a_webhook_becomes_the_row_of_its_track_call(
    connection: psycopg.Connection[dict[str, Any]], ids: dict[str, str], case: str
) -> None:
    """The columns are equal, except those of the delivery and those that Segment leaves out."""
    track = CASES[case]["track"]
    table = track["event"].lower().replace(" ", "_")
    rows = connection.execute(
        f"select * from iterable.{table} where id = any(%s)", ([ids[case], track["messageId"]],)
    ).fetchall()
    by_id = {row["id"]: row for row in rows}
    webhook, meant = by_id[ids[case]], by_id[track["messageId"]]
    differing = {column for column in meant if webhook[column] != meant[column]} - DELIVERY
    assert differing <= KEPT.get(track["event"], set())
    assert [meant[column] for column in differing] == [None] * len(differing)


def test_tracks_has_the_webhook_and_the_track_call(
    connection: psycopg.Connection[dict[str, Any]], ids: dict[str, str]
) -> None:
    """The names are those of their tables."""
    rows = connection.execute("select id, event, event_text from iterable.tracks").fetchall()
    found = {row["id"]: (row["event"], row["event_text"]) for row in rows}
    assert len(found) == 2 * len(CASES)
    assert all(found[ids[case]] == found[example["track"]["messageId"]] for case, example in CASES.items())


def test_every_value_has_its_column(connection: psycopg.Connection[dict[str, Any]]) -> None:
    """No value exceeds its column, and no properties collide."""
    assert connection.execute("select * from raw.mismatches").fetchall() == []
    assert connection.execute("select * from raw.collisions").fetchall() == []


def test_the_body_is_kept_beside_the_call(connection: psycopg.Connection[dict[str, Any]], ids: dict[str, str]) -> None:
    """The body is as Iterable sent it."""
    for case, example in CASES.items():
        row = connection.execute("select payload from raw.events where message_id = %s", (ids[case],)).fetchone()
        assert row is not None
        assert row["payload"]["native"] == example["webhook"]
