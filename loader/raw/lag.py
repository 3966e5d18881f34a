"""How far the tables are behind what has landed, at a price that can be paid every few seconds.

`loader status` counts everything where it lies; this only looks into the indexes, at what came after each table's last
run, and stops counting early.
"""

from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import dict_row

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


# A table that got nothing for long has an old snapshot, so the last run that filled all counts where it is later.
# What tracks waits for is only counted where the event's own table, if it has one, does not wait for it as well.
WAITING = """
    with done as materialized (
        select coalesce(
            (select transforms.snapshot from raw.transforms where whole order by transforms.started_at desc limit 1),
            '1:1:'
        )::pg_snapshot as snapshot
    ),

    readers as materialized (
        select
            cursors.source,
            cursors.model,
            case
                when cursors.snapshot is null then '1:1:'
                when pg_snapshot_xmax(cursors.snapshot) >= pg_snapshot_xmax(done.snapshot) then cursors.snapshot
                -- The run that filled all others left it out.
                when exists (
                    select from raw.held_tables as tables
                    where tables.source = cursors.source and tables.model = cursors.model and tables.held = 'fill'
                ) then cursors.snapshot
                else done.snapshot
            end::pg_snapshot as snapshot
        from (
            select source, model, snapshot from raw.cursors where model <> 'tracks'
            union all
            select sources.schema_name, 'tracks', cursors.snapshot
            from raw.sources
            left join raw.cursors on cursors.source = sources.schema_name and cursors.model = 'tracks'
        ) as cursors
        cross join done
    )

    select
        count(*) as waiting,
        extract(epoch from clock_timestamp() - min(landed_at))::float8 as oldest_seconds
    from (
        select waiting.landed_at
        from (select * from readers where model <> 'tracks') as readers
        cross join lateral (
            (
                select events.landed_at
                from raw.events
                where
                    events.source = readers.source
                    and events.collection = readers.model
                    and events.collection <> ''
                    and events.load_xid >= pg_snapshot_xmax(readers.snapshot)
                order by events.load_xid
                limit %(most)s
            )
            union all
            (
                select events.landed_at
                from raw.events
                where
                    events.source = readers.source
                    and events.collection = readers.model
                    and events.collection <> ''
                    and events.load_xid = any(array(select pg_snapshot_xip(readers.snapshot)))
                limit %(most)s
            )
        ) as waiting
        union all
        select waiting.landed_at
        from (select * from readers where model = 'tracks') as readers
        cross join lateral (
            (
                select events.source, events.collection, events.load_xid, events.landed_at
                from raw.events
                where
                    events.source = readers.source
                    and events.collection is not null
                    and events.load_xid >= pg_snapshot_xmax(readers.snapshot)
                order by events.load_xid
                limit %(most)s
            )
            union all
            (
                select events.source, events.collection, events.load_xid, events.landed_at
                from raw.events
                where
                    events.source = readers.source
                    and events.collection is not null
                    and events.load_xid = any(array(select pg_snapshot_xip(readers.snapshot)))
                limit %(most)s
            )
        ) as waiting
        left join readers as own on own.source = waiting.source and own.model = waiting.collection
        where own.model is null or pg_visible_in_snapshot(waiting.load_xid, own.snapshot)
    ) as waiting
"""
_QUARANTINE = """
    select reason, count(*) as messages from raw.quarantine where resolved_at is null group by reason order by reason
"""
# A scheduler reports every three seconds.
SCHEDULERS = """
    select
        host,
        process_id,
        extract(epoch from every)::float8 as every_seconds,
        started_at,
        state,
        clock_timestamp() - last_seen_at < interval '15 s' as alive,
        round(extract(epoch from clock_timestamp() - last_seen_at))::int as seen_seconds_ago,
        failures,
        last_error,
        next_run_at,
        last_success_at
    from raw.schedules
    order by state = 'standby', last_seen_at desc
"""
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
