"""Errors of the database have one type for both APIs, and a number that is too large is no such error."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from loader.errors import DatabaseError, LoaderError, UsageError
from loader.postgres.database import Database, open_database
from loader.raw.discards import Selection, count_messages
from loader.raw.quarantine import find_message
from loader.raw.sources import revoke_key
from loader.settings import Settings

FAILING = "select 1 / 0"


def fail_with_sqlalchemy(database: Database) -> None:
    """Run a statement that fails in the control plane."""
    with database.begin() as connection:
        connection.execute(text(FAILING))


def fail_with_psycopg(database: Database) -> None:
    """Run a statement that fails in a plain connection."""
    with database.connect() as connection:
        connection.execute(FAILING)


def fail_with_autocommit(database: Database) -> None:
    """Run a statement that fails in a command's data path."""
    with database.autocommit() as connection:
        connection.execute(FAILING)


@pytest.mark.parametrize("fail", [fail_with_sqlalchemy, fail_with_psycopg, fail_with_autocommit])
def test_database_errors_of_both_apis_have_one_type(settings: Settings, fail: Callable[[Database], None]) -> None:
    """Callers catch `DatabaseError` without importing an API."""
    with (
        pytest.raises(DatabaseError, match=r"^The database failed: division by zero$"),
        open_database(settings) as database,
    ):
        fail(database)


def test_an_error_of_the_loader_keeps_its_type_and_message(settings: Settings) -> None:
    """An error of the loader keeps its message and its exit code."""
    with pytest.raises(UsageError, match="wrong"), open_database(settings):
        raise UsageError("wrong")


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**63 - 1])
def test_a_number_that_no_row_has_is_not_found(database: Database, number: int) -> None:
    """The number may exceed PostgreSQL's bigint."""
    with database.begin() as connection:
        for find in (
            lambda: revoke_key(connection, number),
            lambda: find_message(connection, number),
            lambda: count_messages(connection, Selection(load=number)),
        ):
            with pytest.raises(LoaderError, match=f"There is no .* {number}"):
                find()
