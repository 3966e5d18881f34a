"""Reads the state of the warehouse for `loader status`: accepted messages, their tables, and lost messages."""

from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Executable, column, func, select, table, text

from loader.buffer.spool import list_segments
from loader.postgres.statements import read_statement
from loader.raw.destinations import PROGRESS
from loader.raw.lag import SCHEDULERS
from loader.raw.tables import (
    cluster,
    columns,
    generation,
    held_tables,
    mismatches,
    quarantine,
    sources,
    waiting_indexes,
)
from loader.transform.waiting_columns import list_waiting_columns


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

    `accepted` is the sum of `discarded`, `excluded` and the six counts from `in_collections` to `waiting`. If one of
    both missing counts is not 0, messages are lost. `excluded` counts track calls whose integrations keep them out of
    this warehouse. `shared_ids` counts rows of collections that tracks lacks, because an event of another name landed
    first with the same id. `unequal_tables` counts tables that differ from raw.events. The sums alone are not enough,
    because a table with too many rows could hide a table with too few.
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
    excluded: int

    @property
    def holds(self) -> bool:
        """Whether every accepted message is accounted for."""
        found = self.in_collections + self.in_tracks_only + self.quarantined
        found += self.discarded + self.duplicates + self.other_calls + self.excluded + self.waiting
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
        marts: The marts of each source: the time of the last run that filled them, the number of landed events that
            they have not read, the age of the oldest of these events in seconds, the number of failed marts with the
            error of the first, and the variables in force.
        mart_clashes: Sources without marts, because another source has the schema of their marts.
        held_tables: Tables that the last run could not fill, rebuild or change, with the reason and the next try.
        waiting_columns: Columns that wait to be added or widened.
        waiting_indexes: Indexes that no run has built, with the reason.
        collisions: The number of properties without a column of their own, by table and reason.
        without_table: Events without a table, because their source has reached its number of tables.
        runs: The last dbt invocations, the newest first.
        rescan_wanted: Whether events have landed without a record in raw.properties; `loader rescan` records them.
        foreign_segments: Files in this machine's spool that belong to another warehouse and do not land here.
        schedulers: The processes of `loader schedule`. A scheduler that is not `alive` has missed its reports.
        destinations: Destinations with their state and problem.
        deliveries: How far each destination is in each source, with the numbers of its events.
        lost_deliveries: Deliveries whose numbers do not add up.
        returned_calls: Forwarded calls that came back and did not land, by source.
    """

    sources: list[dict[str, Any]]
    conservation: list[Conservation]
    tables: list[TableStatus]
    quarantine: list[dict[str, Any]]
    mismatches: list[dict[str, Any]]
    found: list[dict[str, Any]]
    unequal_tables: list[dict[str, Any]]
    lossy_rebuilds: list[dict[str, Any]]
    marts: list[dict[str, Any]]
    mart_clashes: list[dict[str, Any]]
    held_tables: list[dict[str, Any]]
    waiting_columns: list[dict[str, Any]]
    waiting_indexes: list[dict[str, Any]]
    collisions: list[dict[str, Any]]
    without_table: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    foreign_segments: list[dict[str, Any]]
    destinations: list[dict[str, Any]]
    deliveries: list[dict[str, Any]]
    lost_deliveries: list[dict[str, Any]]
    returned_calls: list[dict[str, Any]]
    rescan_wanted: bool
    events_landed: int
    waiting: int
    freshness_seconds: float | None

    @property
    def is_whole(self) -> bool:
        """Whether each message and each delivery is accounted for, and no rebuild has deleted rows unasked."""
        laws_hold = all(law.holds for law in self.conservation) and not self.lost_deliveries
        return laws_hold and not self.lossy_rebuilds

    def as_json(self) -> dict[str, Any]:
        """Return the status as `--json` prints it."""
        document = asdict(self)
        for law, shown in zip(self.conservation, document["conservation"], strict=True):
            shown["holds"] = law.holds
        return document


_SOURCES = select(sources.c.name, sources.c.schema_name.label("schema"), sources.c.created_at).order_by(sources.c.id)
_law = table("conservation", *(column(field.name) for field in fields(Conservation)), schema="raw")
_CONSERVATION = select(_law).order_by(_law.c.source)
_LANDED = select(func.count()).select_from(table("events", schema="raw"))
_QUARANTINE = (
    select(
        quarantine.c.source,
        quarantine.c.reason,
        func.count().label("messages"),
        func.max(quarantine.c.received_at).label("latest"),
    )
    .where(quarantine.c.resolved_at.is_(None))
    .group_by(quarantine.c.source, quarantine.c.reason)
    .order_by(quarantine.c.source, quarantine.c.reason)
)
_mismatch = (mismatches.c.source, mismatches.c.model.label("table"), mismatches.c.column_name.label("column"))
_MISMATCHES = select(*_mismatch, func.count().label("values")).group_by(*_mismatch).order_by(*_mismatch)
_FOUND = (
    select(
        columns.c.source,
        columns.c.model.label("table"),
        columns.c.column_name.label("column"),
        columns.c.data_type.label("type"),
        columns.c.added_at.label("added"),
        columns.c.first_event_id.label("event"),
    )
    .where(~columns.c.declared)
    .order_by(columns.c.added_at.desc(), columns.c.source, columns.c.model, columns.c.column_name)
    .limit(10)
)
_HELD_TABLES = select(
    held_tables.c.source,
    held_tables.c.model.label("table"),
    held_tables.c.held,
    held_tables.c.reason,
    held_tables.c.since,
    held_tables.c.tries,
    held_tables.c.next_try_at.label("next_try"),
).order_by(held_tables.c.source, held_tables.c.model, held_tables.c.held)
_WAITING_INDEXES = select(
    waiting_indexes.c.source,
    waiting_indexes.c.model.label("table"),
    waiting_indexes.c.columns,
    waiting_indexes.c.reason,
    waiting_indexes.c.since,
).order_by(waiting_indexes.c.source, waiting_indexes.c.model, waiting_indexes.c.columns)
_TABLES = text(read_statement(__file__, "tables"))
# A command that only shows the state gives up before a run does.
_LOCK_WAIT = "10s"
_OLDEST_WAITING = text(read_statement(__file__, "oldest_waiting"))
_UNEQUAL_TABLES = text(read_statement(__file__, "unequal_tables"))
_LOSSY_REBUILDS = text(read_statement(__file__, "lossy_rebuilds"))
_COLLISIONS = text(read_statement(__file__, "collisions"))
_WITHOUT_TABLE = text(read_statement(__file__, "without_table"))
_MARTS = text(read_statement(__file__, "marts"))
_clash = table("mart_clashes", column("source"), column("mart_schema"), column("reason"), schema="raw")
_MART_CLASHES = select(_clash).order_by(_clash.c.source)
_DESTINATIONS = text(read_statement(__file__, "destinations"))
_LOST_DELIVERIES = text(read_statement(__file__, "lost_deliveries"))
_returned = table("returned_calls", column("source"), column("calls"), column("last_at"), schema="raw")
_RETURNED = select(_returned).order_by(_returned.c.source)
_RUNS = text(read_statement(__file__, "runs"))


def is_rescan_wanted(connection: Connection) -> bool:
    """Return whether events have landed without a record in raw.properties, in an older version of the loader."""
    return connection.execute(select(generation.c.rescan_wanted)).scalar_one()


_READABLE = text(read_statement(__file__, "readable_tables"))


def read_readable_tables(connection: Connection) -> list[dict[str, Any]]:
    """Return source, name and number of rows of each table that the role of the connection may read."""
    tables = [dict(row) for row in connection.execute(_READABLE).mappings()]
    for each in tables:
        count = f"select count(*) from {each.pop('name')}"  # noqa: S608 - quoted by the database
        each["rows"] = connection.execute(text(count.replace(":", r"\:"))).scalar_one()
    return tables


def read_status(connection: Connection, spool: Path | None = None) -> Status:
    """Read the state of the warehouse, all of it in one snapshot.

    Args:
        connection: A connection whose transaction has just begun.
        spool: The folder of a collector's spool, to look for segments of other warehouses.
    """
    # All queries use one snapshot, so that the numbers agree while events land.
    connection.execute(text("set transaction isolation level repeatable read, read only"))
    connection.execute(text(f"set local lock_timeout = '{_LOCK_WAIT}'"))

    def rows(statement: Executable) -> list[dict[str, Any]]:
        return [dict(row) for row in connection.execute(statement).mappings()]

    laws = [
        Conservation(source=row.pop("source"), **{name: int(value) for name, value in row.items()})
        for row in rows(_CONSERVATION)
    ]
    here: str = connection.execute(select(cluster.c.warehouse_id)).scalar_one()
    segments = [] if spool is None else list_segments(spool, here)
    oldest: datetime | None = connection.execute(_OLDEST_WAITING).scalar_one()
    return Status(
        sources=rows(_SOURCES),
        conservation=laws,
        tables=[TableStatus(**row) for row in rows(_TABLES)],
        quarantine=rows(_QUARANTINE),
        mismatches=rows(_MISMATCHES),
        found=rows(_FOUND),
        unequal_tables=rows(_UNEQUAL_TABLES) if any(law.unequal_tables for law in laws) else [],
        lossy_rebuilds=rows(_LOSSY_REBUILDS),
        marts=rows(_MARTS),
        mart_clashes=rows(_MART_CLASHES),
        held_tables=rows(_HELD_TABLES),
        waiting_columns=[asdict(each) for each in list_waiting_columns(connection)],
        waiting_indexes=rows(_WAITING_INDEXES),
        collisions=rows(_COLLISIONS),
        without_table=rows(_WITHOUT_TABLE),
        runs=rows(_RUNS),
        schedulers=rows(text(SCHEDULERS)),
        foreign_segments=[asdict(each) for each in segments if each.foreign],
        destinations=rows(_DESTINATIONS),
        deliveries=rows(text(PROGRESS)),
        lost_deliveries=rows(_LOST_DELIVERIES),
        returned_calls=rows(_RETURNED),
        rescan_wanted=is_rescan_wanted(connection),
        events_landed=connection.execute(_LANDED).scalar_one(),
        waiting=sum(law.waiting for law in laws),
        freshness_seconds=None if oldest is None else (datetime.now(UTC) - oldest).total_seconds(),
    )
