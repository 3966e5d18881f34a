"""Reads the state of the warehouse for `loader status`: accepted messages, their tables, and lost messages."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from loader.buffer.spool import list_segments
from loader.raw.lag import SCHEDULERS
from loader.transform.columns import WAITING_COLUMNS


@dataclass(frozen=True)
class TableStatus:
    """One served table.

    Attributes:
        rows: The number of rows.
        waiting: The number of the table's events that landed after its last run.
    """

    source: str
    table: str
    rows: int
    waiting: int


@dataclass(frozen=True)
class Conservation:
    """The conservation law of one source: each accepted message is counted in exactly one place.

    `accepted` is the sum of `discarded` and the six counts from `in_collections` to `waiting`. If one of both missing
    counts is not 0, messages are lost. `shared_ids` counts rows of collections that tracks lacks, because an event of
    another name landed first with the same id. `unequal_tables` counts tables that differ from raw.events. The sums
    alone are not enough, because a table with too many rows could hide a table with too few.
    """

    source: str
    accepted: int
    in_collections: int
    in_tracks_only: int
    quarantined: int
    duplicates: int
    other_calls: int
    waiting: int
    missing_in_collections: int
    missing_in_tracks: int
    shared_ids: int
    discarded: int
    unequal_tables: int

    @property
    def holds(self) -> bool:
        """Whether every accepted message is accounted for."""
        found = self.in_collections + self.in_tracks_only + self.quarantined
        found += self.discarded + self.duplicates + self.other_calls + self.waiting
        return (
            found == self.accepted
            and self.missing_in_collections == 0 == self.missing_in_tracks
            and self.unequal_tables == 0
        )


@dataclass(frozen=True)
class Status:
    """The state of the warehouse at one moment.

    Attributes:
        freshness_seconds: Seconds since the landing of the oldest event that is not in its table yet; None if no event
            is waiting.
        quarantine: Open messages by source and reason.
        mismatches: Values that their column cannot hold, or cannot hold with all digits, by table and column.
        found: The last columns that runs have found in the events, the newest first.
        unequal_tables: Tables with fewer rows than raw.events has events for them (`missing` is positive), or with more
            rows (negative).
        lossy_rebuilds: Tables whose last rebuild read fewer events than the table had read before, without a note.
        held_tables: Tables that the last run could not fill, rebuild or change, with the reason and the next try.
        waiting_columns: Columns that wait to be added or widened.
        collisions: The number of properties without a column of their own, by table and reason.
        without_table: Events without a table, because their source has reached its number of tables.
        runs: The last dbt invocations, the newest first.
        rescan_wanted: Whether events have landed without a record in raw.properties; `loader rescan` records them.
        foreign_segments: Files in this machine's spool that belong to another warehouse and do not land here.
        schedulers: The processes of `loader schedule`. A scheduler that is not `alive` has missed its reports.
    """

    sources: list[dict[str, Any]]
    conservation: list[Conservation]
    tables: list[TableStatus]
    quarantine: list[dict[str, Any]]
    mismatches: list[dict[str, Any]]
    found: list[dict[str, Any]]
    unequal_tables: list[dict[str, Any]]
    lossy_rebuilds: list[dict[str, Any]]
    held_tables: list[dict[str, Any]]
    waiting_columns: list[dict[str, Any]]
    collisions: list[dict[str, Any]]
    without_table: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    foreign_segments: list[dict[str, Any]]
    rescan_wanted: bool
    events_landed: int
    waiting: int
    freshness_seconds: float | None

    @property
    def is_whole(self) -> bool:
        """Whether every accepted message is accounted for, and no rebuild has deleted rows unasked."""
        return all(law.holds for law in self.conservation) and not self.lossy_rebuilds

    def as_json(self) -> dict[str, Any]:
        """Return the status as `--json` prints it."""
        document = asdict(self)
        for law, shown in zip(self.conservation, document["conservation"], strict=True):
            shown["holds"] = law.holds
        return document


_SOURCES = "select name, schema_name as schema, created_at from raw.sources order by id"
_CONSERVATION = "select * from raw.conservation order by source"
_TABLES = """
    select
        cursors.source,
        cursors.model as table,
        raw.count_rows(cursors.source, cursors.model) as rows,
        (
            select count(*)
            from raw.events
            where
                events.source = cursors.source
                and (events.collection = cursors.model or (cursors.model = 'tracks' and events.collection is not null))
                and events.load_xid >= pg_snapshot_xmin(coalesce(cursors.snapshot, '1:1:'))
                and not pg_visible_in_snapshot(events.load_xid, coalesce(cursors.snapshot, '1:1:'))
        ) as waiting
    from raw.cursors
    order by cursors.source, cursors.model
"""
_LANDED = "select count(*) from raw.events"
_OLDEST_WAITING = """
    select min(events.landed_at)
    from raw.events
    left join raw.cursors as own on own.source = events.source and own.model = events.collection
    left join raw.cursors as tracks on tracks.source = events.source and tracks.model = 'tracks'
    where
        events.collection is not null
        and not coalesce(
            pg_visible_in_snapshot(events.load_xid, tracks.snapshot)
            and (own.model is null or pg_visible_in_snapshot(events.load_xid, own.snapshot)),
            false
        )
"""
_QUARANTINE = """
    select source, reason, count(*) as messages, max(received_at) as latest
    from raw.quarantine
    where resolved_at is null
    group by source, reason
    order by source, reason
"""
_MISMATCHES = """
    select source, model as table, column_name as column, count(*) as values
    from raw.mismatches
    group by source, model, column_name
    order by source, model, column_name
"""
_FOUND = """
    select source, model as table, column_name as column, data_type as type, added_at as added, first_event_id as event
    from raw.columns
    where not declared
    order by added_at desc, source, model, column_name
    limit 10
"""
_UNEQUAL_TABLES = """
    select source, model as table, rows, missing
    from (
        select
            source,
            model,
            raw.count_rows(source, model) as rows,
            raw.count_events(source, model, snapshot, false) - read_rows + table_rows
                - raw.count_rows(source, model) as missing
        from raw.cursors
        where snapshot is not null
    ) as compared
    where missing <> 0
    order by source, model
"""
# A version before this one deleted such rows without a word.
_LOSSY_REBUILDS = """
    with reports as (
        select
            *,
            sum(full_refresh::int) over (partition by source, model order by started_at, transform_id) as rebuild
        from raw.syncs
    ),

    rebuilds as (
        select
            source,
            model,
            rebuild,
            sum(read_rows) as read_rows,
            min(read_rows) filter (where full_refresh) as first_read_rows,
            min(started_at) as started_at,
            max(note) filter (where full_refresh) as note,
            max(rebuild) over (partition by source, model) as last_rebuild
        from reports
        group by source, model, rebuild
    )

    select
        later.source,
        later.model as table,
        earlier.read_rows as events_read_before,
        later.first_read_rows as events_read_again,
        later.started_at as rebuilt
    from rebuilds as later
    inner join rebuilds as earlier
        on earlier.source = later.source and earlier.model = later.model and earlier.rebuild = later.rebuild - 1
    where later.rebuild = later.last_rebuild and later.first_read_rows < earlier.read_rows and later.note is null
    order by later.source, later.model
"""
_HELD_TABLES = """
    select source, model as table, held, reason, since, tries, next_try_at as next_try
    from raw.held_tables
    order by source, model, held
"""
_COLLISIONS = """
    select source, model as table, reason, count(*) as properties
    from raw.collisions
    group by source, model, reason
    union all
    select source, collection, 'untracked', 1
    from raw.collections
    where untracked
    order by source, 2, reason
"""
# Seen before the last run, and still not a table.
_WITHOUT_TABLE = """
    select collections.source, collections.event, collections.first_seen_at as first_seen
    from raw.collections
    where
        collections.collection <> ''
        and collections.first_seen_at < (select max(started_at) from raw.transforms where status = 'success')
        and not exists (
            select from raw.cursors
            where cursors.source = collections.source and cursors.model = collections.collection
        )
    order by collections.source, collections.number
"""
_RUNS = """
    select
        transforms.started_at,
        transforms.status,
        extract(epoch from transforms.finished_at - transforms.started_at)::float8 as seconds,
        coalesce(sum(syncs.table_rows) filter (where syncs.model <> 'tracks'), 0)::bigint as rows_in_collections,
        coalesce(sum(syncs.table_rows) filter (where syncs.model = 'tracks'), 0)::bigint as rows_in_tracks,
        transforms.error
    from (select * from raw.transforms order by started_at desc limit 5) as transforms
    left join raw.syncs on syncs.transform_id = transforms.id
    group by transforms.id, transforms.started_at, transforms.status, transforms.finished_at, transforms.error
    order by transforms.started_at desc
"""


def is_rescan_wanted(connection: Connection) -> bool:
    """Return whether events have landed without a record in raw.properties, in an older version of the loader."""
    return bool(connection.execute(text("select rescan_wanted from raw.generation")).scalar_one())


_READABLE = """
    select
        pg_namespace.nspname as source,
        pg_class.relname as table,
        format('%I.%I', pg_namespace.nspname, pg_class.relname) as name
    from pg_class
    inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
    where
        pg_class.relkind in ('r', 'p')
        and not pg_class.relispartition
        and pg_namespace.nspname not like 'pg\\_%'
        and pg_namespace.nspname <> 'information_schema'
        and has_schema_privilege(pg_namespace.oid, 'usage')
        and has_table_privilege(pg_class.oid, 'select')
    order by 1, 2
"""


def read_readable_tables(connection: Connection) -> list[dict[str, Any]]:
    """Return source, name and number of rows of each table that the role of the connection may read."""
    tables = [dict(row) for row in connection.execute(text(_READABLE)).mappings()]
    for table in tables:
        count = f"select count(*) from {table.pop('name')}"  # noqa: S608 - quoted by the database
        table["rows"] = connection.execute(text(count.replace(":", r"\:"))).scalar_one()
    return tables


def read_status(connection: Connection, spool: Path | None = None) -> Status:
    """Read the state of the warehouse, all of it in one snapshot.

    Args:
        connection: A connection whose transaction has just begun.
        spool: The folder of a collector's spool, to look for segments of other warehouses.
    """
    # All queries use one snapshot, so that the numbers agree while events land.
    connection.execute(text("set transaction isolation level repeatable read, read only"))
    connection.execute(text("set local lock_timeout = '10s'"))

    def rows(statement: str) -> list[dict[str, Any]]:
        return [dict(row) for row in connection.execute(text(statement)).mappings()]

    laws = [
        Conservation(source=row.pop("source"), **{name: int(value) for name, value in row.items()})
        for row in rows(_CONSERVATION)
    ]
    here: str = connection.execute(text("select warehouse_id::text from raw.cluster")).scalar_one()
    segments = [] if spool is None else list_segments(spool, here)
    oldest: datetime | None = connection.execute(text(_OLDEST_WAITING)).scalar_one()
    return Status(
        sources=rows(_SOURCES),
        conservation=laws,
        tables=[TableStatus(**row) for row in rows(_TABLES)],
        quarantine=rows(_QUARANTINE),
        mismatches=rows(_MISMATCHES),
        found=rows(_FOUND),
        unequal_tables=rows(_UNEQUAL_TABLES) if any(law.unequal_tables for law in laws) else [],
        lossy_rebuilds=rows(_LOSSY_REBUILDS),
        held_tables=rows(_HELD_TABLES),
        waiting_columns=rows(WAITING_COLUMNS),
        collisions=rows(_COLLISIONS),
        without_table=rows(_WITHOUT_TABLE),
        runs=rows(_RUNS),
        schedulers=rows(SCHEDULERS),
        foreign_segments=[asdict(each) for each in segments if each.foreign],
        rescan_wanted=is_rescan_wanted(connection),
        events_landed=connection.execute(text(_LANDED)).scalar_one(),
        waiting=sum(law.waiting for law in laws),
        freshness_seconds=None if oldest is None else (datetime.now(UTC) - oldest).total_seconds(),
    )
