"""Reads all figures of a report from the marts, in one snapshot."""

from dataclasses import dataclass
from datetime import UTC, date, datetime

import psycopg

from loader.postgres.connection import apply_settings
from loader.postgres.database import Database
from loader.postgres.statements import read_statement
from loader.raw.lag import COUNTED_AT_MOST, WAITING
from loader.report.marts import find_marts, find_newest_day
from loader.report.periods import Period, choose_period
from loader.report.queries import Figure, Values, fill_values, read_figure

_TOTALS = read_statement(__file__, "totals")
_DAYS = read_statement(__file__, "days")
_FUNNEL = read_statement(__file__, "funnel")
_CAMPAIGNS = read_statement(__file__, "campaigns")
_DOMAINS = read_statement(__file__, "domains")
_LINKS = read_statement(__file__, "links")
_REVENUE = read_statement(__file__, "revenue")
_REVENUE_TOTALS = read_statement(__file__, "revenue_totals")
_MACHINES = read_statement(__file__, "machines")
_MISSING_SENDS = read_statement(__file__, "missing_sends")
_QUARANTINE = read_statement(__file__, "quarantine")
_RUNS = read_statement(__file__, "runs")

# The recipients of a period fit into it. With the server's 4 MB, PostgreSQL sorts them on disk.
_WORK_MEM = "64MB"


@dataclass(frozen=True)
class Delivery:
    """The state of the warehouse behind the marts, which only the loader's role can read.

    Attributes:
        quarantine: The source's messages in the quarantine, by reason.
        runs: The times of the last runs, and the marts that failed.
        waiting: The number of events of all sources that no run has read, and the age of the oldest.
    """

    quarantine: Figure
    runs: Figure
    waiting: Figure


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
        source: The source's name.
        period: The days of the report.
        time_zone: The zone of the days; None if the role cannot read it.
        model: The attribution model of the conversions.
        made_at: The time of the snapshot.
        totals: Messages, recipients and rates by period and channel.
        days: Events by day and channel.
        funnel: Recipients by channel and step.
        campaigns: Messages, recipients and rates by campaign.
        domains: Emails by the recipient's domain.
        links: Clicks by link.
        revenue: Conversions by campaign and currency.
        revenue_totals: Conversions by period and currency.
        machines: Opens and clicks by channel, of machines and of people.
        missing_sends: Messages without a send, by channel.
        delivery: The state of the warehouse; None if the role cannot read it.
    """

    source: str
    period: Period
    time_zone: str | None
    model: str
    made_at: datetime
    totals: Figure
    days: Figure
    funnel: Figure
    campaigns: Figure
    domains: Figure
    links: Figure
    revenue: Figure
    revenue_totals: Figure
    machines: Figure
    missing_sends: Figure
    delivery: Delivery | None


def read_report(
    database: Database,
    source: str | None = None,
    *,
    first_day: date | None = None,
    last_day: date | None = None,
    days: int = 30,
) -> Report:
    """Read the report of a source.

    Args:
        database: An open database, of the loader's role or of a reader.
        source: The name or schema of the source; None for the only source with marts.
        first_day: The first day; None for `days` before the last day.
        last_day: The last day; None for the last day with events that is over.
        days: The number of days without `first_day`.

    Raises:
        MartsError: The source has no marts.
        SourceError: There is no such source, or the source must be named.
        UsageError: The period is not valid.
    """
    with database.connect() as connection:
        # All figures use one snapshot, so that they agree while a run fills the marts.
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        _set_transaction(connection, database)
        marts = find_marts(connection, source, is_reader=database.is_reader)
        period = choose_period(first_day, last_day, days, find_newest_day(connection, marts))
        values: Values = {
            "marts": marts.schema,
            "model": marts.model,
            "first_day": period.first_day,
            "last_day": period.last_day,
            "first_day_before": period.before.first_day,
            "last_day_before": period.before.last_day,
        }

        def figure(statement: str) -> Figure:
            return read_figure(connection, fill_values(statement, values))

        return Report(
            source=marts.source,
            period=period,
            time_zone=marts.time_zone,
            model=marts.model,
            made_at=datetime.now(UTC),
            totals=figure(_TOTALS),
            days=figure(_DAYS),
            funnel=figure(_FUNNEL),
            campaigns=figure(_CAMPAIGNS),
            domains=figure(_DOMAINS),
            links=figure(_LINKS),
            revenue=figure(_REVENUE),
            revenue_totals=figure(_REVENUE_TOTALS),
            machines=figure(_MACHINES),
            missing_sends=figure(_MISSING_SENDS),
            delivery=None if database.is_reader else _read_delivery(connection, marts.source_schema),
        )


def _set_transaction(connection: psycopg.Connection, database: Database) -> None:
    """Set time zone, memory and time limits of the transaction; a reader keeps the time limit of its role."""
    wanted = {"timezone": "UTC", "lock_timeout": f"{database.lock_wait * 1000:.0f}ms", "work_mem": _WORK_MEM}
    if not database.is_reader:
        wanted |= {"statement_timeout": "0", "transaction_timeout": "0"}
    apply_settings(connection, wanted, for_transaction=True)


def _read_delivery(connection: psycopg.Connection, schema: str) -> Delivery:
    """Read the state of the warehouse, as the last part of the transaction."""
    values: Values = {"source_schema": schema, "most": COUNTED_AT_MOST}
    quarantine = read_figure(connection, fill_values(_QUARANTINE, values))
    runs = read_figure(connection, fill_values(_RUNS, values))
    # The waiting events are few among many, and the planner may not know.
    connection.execute("set local enable_seqscan = off")
    return Delivery(quarantine, runs, read_figure(connection, fill_values(WAITING, values)))
