"""The demo's sample events: all of them land, also when an earlier demo was stopped, and never among other events."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import pytest

import loader.cli.demo
from loader.cli.demo import send_sample_events
from loader.errors import UsageError
from loader.postgres.database import Database, open_database
from loader.sample.events import generate_sample_events, last_sunday
from loader.settings import Settings
from tests.support.factories import insert_event

RECIPIENTS = 20


@pytest.fixture
def database(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Return that database, for a demo with few recipients."""
    monkeypatch.setattr(
        loader.cli.demo, "generate_sample_events", partial(generate_sample_events, recipients=RECIPIENTS)
    )
    with open_database(settings) as opened:
        yield opened


def landed(database: Database) -> set[str]:
    """Return the ids of the landed events."""
    with database.connect() as connection:
        return {row[0] for row in connection.execute("select message_id from raw.events")}


def test_a_stopped_demo_is_continued(database: Database, settings: Settings) -> None:
    """The next run sends the rest. A run after that sends nothing."""
    sample = generate_sample_events(last_sunday(datetime.now(UTC).date()), recipients=RECIPIENTS)
    whole = {call["messageId"] for call in (*sample.iterable, *sample.app)}
    send_sample_events(database, settings)
    assert landed(database) == whole
    with database.connect(autocommit=True) as connection:
        connection.execute("delete from raw.events where seq > 100")
    send_sample_events(database, settings)
    assert landed(database) == whole
    with database.connect() as connection:
        before = connection.execute("select count(*) from raw.events").fetchone()
        send_sample_events(database, settings)
        assert connection.execute("select count(*) from raw.events").fetchone() == before


def test_the_demo_of_an_earlier_version_is_left_alone(database: Database, settings: Settings) -> None:
    """The error names the folder to remove. The sample would otherwise mix with other events."""
    with database.connect(autocommit=True) as connection:
        insert_event(connection, "email_opened", "old")
    with pytest.raises(UsageError, match="Remove that folder"):
        send_sample_events(database, settings)
    assert landed(database) == {"old"}
