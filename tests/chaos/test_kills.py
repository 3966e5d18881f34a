"""`kill -9` of the collector and of its database under load: no event with a 200 is lost or doubled."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from loader.postgres.database import open_database
from loader.raw.sources import add_key
from loader.settings import Settings
from tests.support.collector_process import serving
from tests.support.dbt_runs import run
from tests.support.load import assert_landed, load, wait_until_replayed
from tests.support.own_server import own_server, signal_server
from tests.support.served_tables import law

# Answers between two kills: this minimum, and a random number more.
BETWEEN = 20


@pytest.fixture
def own(cluster_template: Path) -> Iterator[Settings]:
    """Return settings of an embedded database of one test, which may kill the database."""
    with own_server(cluster_template) as settings:
        yield settings


@pytest.mark.parametrize(
    ("seed", "kills"),
    [
        (1, ["collector", "database", "both"]),
        *(pytest.param(seed, None, marks=pytest.mark.soak) for seed in range(2, 8)),
    ],
)
def test_events_with_a_200_are_in_tracks_once_after_kills(
    own: Settings, tmp_path: Path, seed: int, kills: list[str] | None
) -> None:
    """They are in raw.events after the last replay, in the order of each sender, and in the tables exactly once."""
    drawn = random.Random(seed)
    victims = kills or drawn.choices(["collector", "database", "both"], k=20)
    with open_database(own) as database, database.begin() as transaction:
        key = add_key(transaction, "Iterable")
    embedded = own.model_copy(update={"database_url": ""})
    with serving(embedded, tmp_path) as collector, load(collector.port, key) as sent:
        for victim in victims:
            sent.wait_for(BETWEEN + drawn.randrange(50))
            if victim != "collector":
                signal_server(own, signal.SIGKILL)
            if victim != "database":
                collector.signal(signal.SIGKILL)
                collector.wait()
                collector.start()
        sent.wait_for(BETWEEN)
        sent.stop()
        with open_database(embedded) as database, database.connect(autocommit=True) as connection:
            wait_until_replayed(connection, sent)
            assert_landed(connection, sent)
            settings = embedded.model_copy(update={"database_url": database.url})
            run(database, settings, "email_opened", "found_collections", "tracks")
            rows = connection.execute("select id from iterable.tracks").fetchall()
            assert len(rows) == len(set(rows))
            assert sent.ids <= {row[0] for row in rows} <= sent.sent
            assert law(connection)["quarantined"] == 0
    assert sent.statuses.keys() <= {200, 0}
