"""A kept connection: opened once, and again after an error or a cut."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.kept_connection import KeptConnection

SECONDS = 60.0


@pytest.fixture
def opened() -> list[psycopg.Connection]:
    """The connections that were opened, in their order."""
    return []


@pytest.fixture
def kept(empty_url: str, opened: list[psycopg.Connection]) -> Iterator[KeptConnection]:
    """A kept connection to an empty database."""

    def connect() -> psycopg.Connection:
        opened.append(psycopg.connect(empty_url, autocommit=True))
        return opened[-1]

    kept = KeptConnection(connect)
    yield kept
    kept.close()


def answer(kept: KeptConnection, seconds: float = SECONDS) -> int:
    """Run a statement over the connection, and return its result."""
    with kept.use(seconds) as connection:
        row = connection.execute("select 7").fetchone()
    assert row
    return int(row[0])


def test_nothing_is_opened_before_the_first_use(kept: KeptConnection, opened: list[psycopg.Connection]) -> None:
    """The constructor, `close` and `cut` work without a database."""
    kept.cut()
    kept.close()
    assert opened == []


def test_all_uses_share_a_connection(kept: KeptConnection, opened: list[psycopg.Connection]) -> None:
    """A repeated query costs no new session."""
    assert [answer(kept), answer(kept)] == [7, 7]
    assert len(opened) == 1


@pytest.mark.parametrize("error", [psycopg.OperationalError("lost"), OSError("lost"), KeyboardInterrupt()])
def test_an_error_in_the_block_closes_the_connection(
    kept: KeptConnection, opened: list[psycopg.Connection], error: BaseException
) -> None:
    """The state of the connection is unknown then, so the next use opens another connection."""
    with pytest.raises(type(error)), kept.use(SECONDS):
        raise error
    assert opened[0].closed
    assert answer(kept) == 7
    assert len(opened) == 2


def test_a_connection_that_was_closed_is_opened_again(kept: KeptConnection, opened: list[psycopg.Connection]) -> None:
    """`close` ends the session, and not the use of the class."""
    answer(kept)
    kept.close()
    answer(kept)
    assert len(opened) == 2


def test_a_failed_attempt_is_repeated_by_the_next_use(empty_url: str) -> None:
    """The error of the attempt reaches the caller, and leaves nothing behind."""
    attempts = iter([False, True])

    def connect() -> psycopg.Connection:
        if not next(attempts):
            raise OSError("no database")
        return psycopg.connect(empty_url)

    kept = KeptConnection(connect)
    with pytest.raises(OSError, match="no database"), kept.use(SECONDS):
        pass
    assert answer(kept) == 7
    kept.close()


def test_a_block_that_takes_too_long_loses_the_connection(kept: KeptConnection) -> None:
    """A server that has vanished holds no thread for ever."""
    with pytest.raises(psycopg.OperationalError), kept.use(0.01) as connection:
        connection.execute("select pg_sleep(60)")
    assert answer(kept) == 7


def test_another_thread_can_end_a_use(kept: KeptConnection) -> None:
    """`cut` makes the waiting statement fail."""
    answer(kept)
    waiting = threading.Event()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            with kept.use(SECONDS) as connection:
                waiting.set()
                connection.execute("select pg_sleep(60)")
        except psycopg.Error as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(SECONDS)
    kept.cut()
    thread.join(SECONDS)
    assert [type(error) for error in errors] == [psycopg.OperationalError]
