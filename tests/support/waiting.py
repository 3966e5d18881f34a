"""Waits for the effects of other processes and other sessions."""

import time
from collections.abc import Callable
from threading import Event as Signal

import psycopg

# A first run of dbt on a busy machine parses the project for a minute.
DEADLINE_SECONDS = 180.0


def wait_until(condition: Callable[[], object], what: str = "it to happen") -> None:
    """Wait for an effect of another process, and fail if the effect does not come."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    pause = Signal()
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:.0f} s for: {what}"
        pause.wait(0.02)


def waiting(connection: psycopg.Connection) -> int:
    """Return the number of sessions that wait for a lock in this database; other databases have equal locks."""
    query = "select from pg_locks join pg_stat_activity using (pid) where not granted and datname = current_database()"
    return len(connection.execute(query).fetchall())


def can_connect(url: str) -> bool:
    """Return whether a database accepts a connection."""
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True
