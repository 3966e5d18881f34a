"""The law of conservation, `loader status` and the data tests detect every difference of tables and raw.events."""

from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.transform.status import read_status
from tests.conftest import Loader
from tests.integration.conftest import Dbt, MakeSmall
from tests.integration.raw.test_losses import LOSE, make_filled


@pytest.fixture
def small_start(make_small: MakeSmall) -> str:
    """Return the name of a database with filled tables, with and without a model."""
    events = ("email_opened", 1, 250), ("email_delivered", 301, 305), ("order_placed", 401, 403)
    return make_filled(make_small, "conservation_template", *events)


@pytest.fixture
def filled(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection to a clone of that database."""
    with small.connect(autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize(
    ("damage", "unequal", "failing"),
    [
        (
            """
            insert into raw.events (source, collection, message_id, payload)
            values ('iterable', 'email_opened', 'unread', '{}'), ('iterable', 'order_placed', 'unread too', '{}');
            update raw.cursors set snapshot = pg_current_snapshot() where model <> 'tracks'
            """,
            {"email_opened": 1, "order_placed": 1},
            ["matches_raw_email_opened", "found_tables"],
        ),
        (LOSE, {"email_opened": -200, "tracks": -200}, ["matches_raw_email_opened"]),
        (
            "drop table iterable.order_placed; drop table iterable.email_delivered",
            {"email_delivered": 5, "order_placed": 3},
            ["found_tables", "matches_raw_email_delivered"],
        ),
        (
            """
            delete from iterable.email_delivered where id = '301';
            insert into iterable.email_opened (id, event) values ('by hand', 'email_opened')
            """,
            {"email_delivered": 1, "email_opened": -1},
            ["matches_raw_email_delivered", "matches_raw_email_opened"],
        ),
    ],
    ids=[
        "a3 a cursor that moved alone",
        "a5 fewer raw events",
        "a12 no table, without and with a model",
        "two that cancel",
    ],
)
def test_status_and_data_tests_detect_every_damage(  # noqa: PLR0917 - pytest passes them by name
    filled: psycopg.Connection,
    small: Database,
    loader: Loader,
    dbt: Dbt,
    damage: str,
    unequal: dict[str, int],
    failing: list[str],
) -> None:
    """The law does not hold, `status` names the tables and exits with 1, and the tests of these tables fail."""
    assert loader("status").returncode == 0
    for statement in damage.split(";"):
        filled.execute(statement)
    with small.begin() as connection:
        status = read_status(connection)
    assert [law.holds for law in status.conservation] == [False]
    assert {row["table"]: row["missing"] for row in status.unequal_tables} == unequal
    shown = loader("status")
    assert shown.returncode == 1
    assert all(f"{name} " in shown.stdout for name in unequal)
    code, output = dbt("test", "--select", "test_type:data")
    assert code != 0
    for name in failing:
        assert f"in test {name}" in output


def test_a5_status_reports_rows_lost_by_a_rebuild_of_an_older_version(
    filled: psycopg.Connection, loader: Loader
) -> None:
    """No rows are left to compare, but the reports of the runs show the loss.

    Repeating the rebuild ends the message.
    """
    filled.execute(LOSE)
    allowed = ("transform", "--full-refresh", "--allow-loss", "--select", "iterable.email_opened", "--select", "tracks")
    assert loader(*allowed).returncode == 0
    assert loader("status").returncode == 0
    # An older version wrote no note.
    filled.execute("update raw.syncs set note = null")
    shown = loader("status")
    assert shown.returncode == 1
    assert "Rebuilds that deleted rows whose events were gone" in shown.stdout
    assert "email_opened" in shown.stdout.partition("Rebuilds that deleted")[2]
    assert loader("transform", "--full-refresh").returncode == 0
    assert loader("status").returncode == 0
