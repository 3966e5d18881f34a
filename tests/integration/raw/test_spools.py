"""The positions of segments and the active write keys, as a collector reads and writes them."""

from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.raw.active_keys import read_active_keys, record_use
from loader.raw.sources import add_key, key_digest, list_keys, revoke_key
from loader.raw.spools import advance, forget_old, read_positions


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """A connection in autocommit, as a collector has it."""
    with database.connect(autocommit=True) as opened:
        yield opened


def test_a_position_moves_from_where_it_is(connection: psycopg.Connection) -> None:
    """The first step of a segment begins at any position, each later step where the previous step has ended."""
    assert read_positions(connection) == {}
    assert advance(connection, "a", 0, 10)
    assert advance(connection, "b", 5, 6)
    assert advance(connection, "a", 10, 30)
    assert read_positions(connection) == {"a": 30, "b": 6}


def test_two_processes_cannot_both_move_a_position(connection: psycopg.Connection) -> None:
    """The second of them learns that its events have landed already."""
    assert advance(connection, "a", 0, 10)
    assert not advance(connection, "a", 0, 10)
    assert not advance(connection, "a", 5, 20)
    assert read_positions(connection) == {"a": 10}


def test_only_positions_older_than_a_year_are_deleted(connection: psycopg.Connection) -> None:
    """A segment may wait for months, but not for more than a year."""
    for segment, age in (("a", "13 months"), ("b", "11 months")):
        advance(connection, segment, 0, 1)
        statement = "update raw.spools set updated_at = now() - %s::interval where segment = %s"
        connection.execute(statement, (age, segment))
    forget_old(connection)
    assert read_positions(connection) == {"b": 1}


def test_revoked_keys_are_not_active(database: Database, connection: psycopg.Connection) -> None:
    """An active key is known by its digest, with its number and the schema of its source."""
    before = read_active_keys(connection)
    with database.begin() as control:
        kept, revoked = add_key(control, "Iterable"), add_key(control, "Iterable")
        numbers = [key.id for key in list_keys(control)][-2:]
        revoke_key(control, numbers[1])
    added = {key_digest(kept).hex(): (numbers[0], "iterable")}
    assert read_active_keys(connection) == before | added
    assert key_digest(revoked).hex() not in read_active_keys(connection)


def test_the_use_of_a_key_is_recorded(database: Database, connection: psycopg.Connection) -> None:
    """Of the used keys, and of no others."""
    with database.begin() as control:
        add_key(control, "Iterable")
        add_key(control, "Iterable")
        numbers = [key.id for key in list_keys(control)]
    record_use(connection, {numbers[-1]})
    with database.begin() as control:
        used = {key.id for key in list_keys(control) if key.last_used_at}
    assert used == {numbers[-1]}
