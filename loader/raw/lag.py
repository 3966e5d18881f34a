"""Measures how far the tables are behind the landed events, cheaply enough for a query every few seconds.

`loader status` counts all rows in all tables. This module reads only indexes, only the events after each table's last
run, and stops counting at `COUNTED_AT_MOST`.
"""

from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import dict_row

from loader.postgres.statements import read_statement

COUNTED_AT_MOST = 10_000


@dataclass(frozen=True)
class Freshness:
    """The delay of the tables behind the landed events, at one moment.

    Attributes:
        oldest_seconds: Age of the oldest event that is not in its table yet; None if no event is waiting.
        waiting: Number of waiting events, at most `COUNTED_AT_MOST` of each table. If a table is to be rebuilt, all
            its events are waiting.
        quarantine: Number of open messages by reason, of all sources.
        failures: Failures in a row of the working scheduler; None if no scheduler is working.
        last_success_at: Time of the last run that filled every table, by any program; None before the first such run.
    """

    oldest_seconds: float | None
    waiting: int
    quarantine: dict[str, int]
    failures: int | None
    last_success_at: datetime | None


WAITING = read_statement(__file__, "waiting")
_QUARANTINE = """
    select reason, count(*) as messages from raw.quarantine where resolved_at is null group by reason order by reason
"""
SCHEDULERS = read_statement(__file__, "schedulers")
_LAST_SUCCESS = "select finished_at from raw.transforms where whole order by started_at desc limit 1"


def freshness(connection: psycopg.Connection) -> Freshness:
    """Read how far the tables are behind the landed events.

    Args:
        connection: An open connection.

    Raises:
        psycopg.Error: The database cannot run the queries.
    """
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("set local enable_seqscan = off")
        [counted] = cursor.execute(WAITING, {"most": COUNTED_AT_MOST}).fetchall()
        working = [row for row in cursor.execute(SCHEDULERS) if row["alive"] and row["state"] != "standby"]
        quarantine = {row["reason"]: row["messages"] for row in cursor.execute(_QUARANTINE)}
        last = cursor.execute(_LAST_SUCCESS).fetchone()
    return Freshness(
        oldest_seconds=counted["oldest_seconds"],
        waiting=counted["waiting"],
        quarantine=quarantine,
        failures=working[0]["failures"] if working else None,
        last_success_at=last["finished_at"] if last else None,
    )
