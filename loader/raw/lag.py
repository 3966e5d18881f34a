"""How far the tables are behind what has landed, at a price that can be paid every few seconds.

`loader status` counts everything where it lies; this only looks into the indexes, at what came after each table's last
run, and stops counting early.
"""

from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import dict_row

from loader.postgres.statements import read_statement

COUNTED_AT_MOST = 10_000


@dataclass(frozen=True)
class Freshness:
    """How far the tables are behind, at one moment.

    Attributes:
        oldest_seconds: Age of the oldest event that is not in its table yet; None when none is waiting.
        waiting: How many events are waiting, of each table `COUNTED_AT_MOST` at most; of a table that is to be made
            again, all.
        quarantine: Open messages by reason, of all sources.
        failures: Failures in a row of the scheduler at work; None when there is none alive.
        last_success_at: When a run last filled every table, whoever started it; None before the first.
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
    """Read how far the tables are behind.

    Args:
        connection: An open connection.

    Raises:
        psycopg.Error: The database cannot say.
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
