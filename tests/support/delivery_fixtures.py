"""A database with an empty table tracks, a receiver and a key, for tests of deliveries and of their commands."""

from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from tests.support.deliveries import make_tracks
from tests.support.receivers import Receiver, receiving

KEY = "key-that-nobody-may-see"


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """Return a connection to the test's database, in which tracks has read nothing."""
    with database.connect(autocommit=True) as opened:
        make_tracks(opened)
        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a receiver that takes everything."""
    with receiving() as running:
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the key of destinations into the environment."""
    monkeypatch.setenv("DESTINATION_KEY", KEY)
    return KEY
