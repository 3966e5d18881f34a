"""A database with generated events, whose marts tests fill and compare with the expected rows."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from random import Random
from typing import Any, NamedTuple

import psycopg

from loader.events.naming import table_name
from loader.postgres.database import Database, open_database
from loader.raw.rescan import rescan
from loader.settings import Settings
from loader.transform.dbt import TableFilled, transform
from tests.support.marts.compare import assert_marts_equal
from tests.support.marts.expected import KEYS, expected_marts
from tests.support.marts.variables import Variables
from tests.support.nasty_events import SALES_TABLE, Call, generate_nasty_events
from tests.support.served_tables import COLLECTIONS

_LAND = """
    insert into raw.events (seq, source, collection, message_id, payload) overriding system value
    values (%s, %s, %s, %s, %s)
"""
_SELL = """
    insert into shop."Sales" (id, uuid_ts, sold, user_id, anonymous_id, total, code)
    values (%(id)s, %(uuid_ts)s, %(sold)s, %(user_id)s, %(anonymous_id)s, %(total)s, %(code)s)
"""


class Landing(NamedTuple):
    """A call with its place in the order of landing, which decides which of several calls with one id counts."""

    seq: int
    source: str
    call: Call


def in_order(calls: Mapping[str, Iterable[Call]]) -> list[Landing]:
    """Return the calls of several sources in one order of landing."""
    pairs = [(source, call) for source, each in calls.items() for call in each]
    return [Landing(seq, source, call) for seq, (source, call) in enumerate(pairs, 1)]


def chop(landings: Sequence[Landing], parts: int, seed: int) -> list[list[Landing]]:
    """Return landings in parts of random sizes, in disorder.

    Most landings keep to their order. The others come in any part. So later parts have latecomers, which replace rows
    of earlier parts, because the order of landing decides.
    """
    chance = Random(seed)
    borders = sorted(chance.sample(range(1, len(landings)), parts - 1))
    chopped: list[list[Landing]] = [[] for _ in range(parts)]
    for place, landing in enumerate(landings):
        in_time = sum(border <= place for border in borders)
        chopped[in_time if chance.random() < 0.7 else chance.randrange(parts)].append(landing)
    for part in chopped:
        chance.shuffle(part)
    return chopped


def land_all(connection: psycopg.Connection, landings: Iterable[Landing]) -> None:
    """Land calls in one transaction, without a collector or file."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            _LAND,
            [
                [seq, source, table_name(call["event"]), call["messageId"], json.dumps(call)]
                for seq, source, call in landings
            ],
        )
        cursor.execute(
            "select setval(pg_get_serial_sequence('raw.events', 'seq'), (select max(seq) from raw.events) + 1000000)"
        )


def with_marts(settings: Settings, variables: Variables | str = "") -> Settings:
    """Return settings with which a run fills the marts."""
    written = variables if isinstance(variables, str) else json.dumps(asdict(variables), default=str)
    return settings.model_copy(update={"marts": True, "vars": written})


def fill(database: Database, settings: Settings, **options: Any) -> list[TableFilled]:
    """Run the transform; no table and no mart may fail."""
    filled = transform(database, settings, **options)
    failed = [f"{table.source}.{table.table}: {table.error}" for table in filled if table.error]
    assert not failed, "; ".join(failed)
    return filled


def read_rows(connection: psycopg.Connection, table: str) -> list[dict[str, Any]]:
    """Return all rows of a table."""
    cursor = connection.execute(f"select * from {table}")
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


class Warehouse:
    """A database with generated events, whose marts tests compare.

    Args:
        database: The open database.
        settings: Settings with which a run fills the marts.
        connection: A connection in autocommit, with times in UTC.
    """

    def __init__(self, database: Database, settings: Settings, connection: psycopg.Connection) -> None:
        self.database = database
        self.settings = settings
        self.connection = connection

    def fill(self, **options: Any) -> list[TableFilled]:
        """Run the transform with marts."""
        return fill(self.database, self.settings, **options)

    def tables(self, schema: str = "iterable_marts") -> list[str]:
        """Return the names of the marts, internal ones too."""
        query = (
            "select table_name from information_schema.tables where table_schema = %s"
            " and table_name not like 'int\\_changes\\_%%' order by 1"
        )
        return [str(name) for (name,) in self.connection.execute(query, [schema])]

    def contents(self, schema: str = "iterable_marts") -> dict[str, list[str]]:
        """Return the rows of all marts."""
        return {
            name: sorted(map(repr, self.connection.execute(f'select * from "{schema}"."{name}"').fetchall()))
            for name in self.tables(schema)
        }

    def versions(self) -> dict[str, tuple[int, int]]:
        """Return the version and the oldest version of the log, by mart."""
        return {
            mart: (version, oldest)
            for mart, version, oldest in self.connection.execute(
                "select mart, version, oldest_version from raw.marts where source = 'iterable'"
            )
        }

    def number(self, query: str) -> Any:
        """Return the value of a query of one value."""
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return row[0]

    def assert_expected(self, variables: Variables, source: str = "iterable") -> None:
        """Check every mart of a source against the independent computation from the served tables."""
        tables = {name: read_rows(self.connection, f'"{source}"."{name}"') for name in COLLECTIONS}
        conversions = {
            (schema, table): read_rows(self.connection, f'"{schema}"."{table}"')
            for schema, table in ((each["schema"], each["table"]) for each in variables.conversion_events)
            if self.number(f"""select to_regclass('"{schema}"."{table}"') is not null""")
        }
        assert_marts_equal(
            expected_marts(tables, conversions, variables),
            {mart: read_rows(self.connection, f'"{source}_marts"."{mart}"') for mart in KEYS},
        )


@contextmanager
def open_warehouse(settings: Settings, variables: Variables) -> Iterator[Warehouse]:
    """Open a database for tests of its marts."""
    with open_database(settings) as database, database.connect(autocommit=True) as connection:
        connection.execute("set timezone = 'UTC'")
        yield Warehouse(database, with_marts(settings, variables), connection)


def fill_in_parts(
    warehouse: Warehouse, *, events: int, parts: int, seed: int = 1, with_found_columns: bool = False
) -> None:
    """Fill the tables and marts of two senders with nasty events in several runs, with orders of an app and sales.

    Args:
        warehouse: A database with tables that are empty.
        events: The number of events of the first sender.
        parts: The number of runs.
        seed: The seed of the events, and of their parts.
        with_found_columns: Give the tables columns that the layout does not declare. The marts must not read them.
    """
    connection = warehouse.connection
    connection.execute("insert into raw.sources (name, schema_name) values ('Select', 'select'), ('App', 'app')")
    connection.execute(SALES_TABLE)
    nasty, other = generate_nasty_events(events, seed), generate_nasty_events(events // 10, seed + 1)
    landings = in_order({"iterable": nasty.iterable, "select": other.iterable, "app": nasty.app})
    for number, part in enumerate(chop(landings, parts, seed)):
        land_all(connection, part)
        with connection.cursor() as cursor:
            cursor.executemany(_SELL, nasty.sales[number::parts])
        rescan(connection, None if with_found_columns else "app")
        warehouse.fill()
