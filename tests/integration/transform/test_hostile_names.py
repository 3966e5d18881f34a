"""Events and properties of any name and shape, compared with a model of the layout without SQL."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from loader.events.segment import parse_lines
from loader.postgres.database import Database, open_database
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.settings import Settings
from tests.conftest import own_database
from tests.support.dbt_runs import run
from tests.support.layout_model import Table, agrees, declared, expect, fits
from tests.support.served_tables import contents, law
from tests.support.small_project import KEPT, used

Event = dict[str, Any]

# The sources of the events.
MODELS = ("email_opened", "found_collections", "tracks")

# The value of {{ env_var('HOSTILE') }} if dbt renders it. No event contains the value.
LEAK = "leaked-7f3a"

LONG = "long" * 2500
NAMES = [
    'it\'s "quoted"; drop table raw.events; --',
    "'); drop table raw.events; --",
    "{{ env_var('HOSTILE') }}",
    "{% raw %}{{ env_var('HOSTILE') }}",
    "{% endraw %}{{ run_query('drop table raw.events') }}",
    "{# comment",
    "back\\slash\\'; x",
    "$$ dollar $q$ %s %(name)s {0} :name ?",
    "emoji 😀 Party",
    "line\nbreak\ttab",
    "open",
    "Select",
    "101 Account Update",
    "__proto__",
    "constructor",
    "null",
    "None",
    "true",
    "1e3",
    "a" * 62,
    "a" * 63,
    "a" * 64,
    LONG,
    LONG + "b",
    "xmin",
    "ctid",
]
EVENTS = [
    *NAMES,
    "Email Opened",
    "email_opened",
    "Order Placed",
    "order placed",
    "orderPlaced",
    "tracks",
    "Users",
    "found collections",
    "pg_class",
    "raw events",
    "日本語",
    " ",
    "😀",
]
KEYS = [
    *NAMES,
    "",
    " ",
    "日本語",
    "id",
    "ID",
    "user_id",
    "userId",
    "event",
    "received_at",
    "timestamp",
    "uuid_ts",
    "_user",
    "user",
    "from",
    "label",
    "Label",
    "LABEL",
    "label_a",
    "a",
    "campaignId",
    "campaign_id",
    "CampaignID",
    "isBot",
    "email",
    "emailSubject",
    "labels",
]
TIMES = [
    "2019-07-08T18:33:25.000Z",
    "2020-02-29T23:59:59.123456+05:30",
    "2019-07-08T18:33Z",
    "2019-07-08T18:33:25",
    "2019-07-08T18:33:25-0800",
    "1999-12-31T00:00:00+14:00",
]
NEAR_TIMES = [
    "2019-07-08 18:33:25 +00:00",
    "2019-07-08",
    "2019-02-29T00:00:00Z",
    "2019-07-08T24:00:00Z",
    "2019-07-08T18:33:60Z",
    "2019-13-08T18:33:25Z",
    "2019-04-31T18:33:25Z",
    "1900-02-29T18:33:25Z",
    "2019-07-08t18:33:25z",
    "2019-07-08T18:33:25Z ",
    "2019-07-08T18:33:25Z\n",
    "2019-07-08T18:33:25 Z",
    "2019-07-08T18:33:25Z; drop table raw.events",
    "0000-01-01T00:00:00Z",
    "２０１９-07-08T18:33:25Z",
    "now",
    "today",
    "infinity",
]
INTEGERS = [0, 1, -7, 12, 2**53 + 1, 2**63 - 1, -(2**63), 12.0, -0.0]
NUMBERS = [12.5, 2**63, 2**70, -(2**70), 1e20, 0.1, 1e-9]
STRINGS = ["", "x", "8", "12.0", "true", "null", "NaN", "{}", "\\", "\u2028", "😀", "a" * 600, *NAMES[:9]]
ARRAYS: list[Any] = [[], [1, 2], ["a", {"b": None}], [[]], ["{{ env_var('HOSTILE') }}"]]

# Letters without any reserved word, and every kind of character with a meaning in SQL, JSON or Jinja.
ODD_TEXT = st.text(alphabet="bxzBXZ019 _-.$%\"';{}\\/\n\x01\x7fé日😀İſK\u202e", max_size=12)
SHORT = 100
KEY = st.one_of(st.sampled_from([key for key in KEYS if len(key) < SHORT]), ODD_TEXT)
NAME = st.one_of(st.sampled_from([name for name in EVENTS if len(name) < SHORT]), ODD_TEXT)
SCALAR = st.one_of(
    *map(
        st.sampled_from,
        ([None], [True, False], INTEGERS, INTEGERS, NUMBERS, TIMES, TIMES, NEAR_TIMES, STRINGS, ARRAYS),
    ),
    ODD_TEXT,
)


def of_one_kind(keys: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with few different keys, so that values of different types share a key."""
    key = st.sampled_from(keys)
    inner = st.dictionaries(key, SCALAR, max_size=3)
    deeper = st.dictionaries(key, st.one_of(SCALAR, inner), max_size=3)
    return st.dictionaries(key, st.one_of(SCALAR, SCALAR, SCALAR, deeper), max_size=8)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Event]]:
    """Return the events of some runs, with few names and properties, and sometimes with a repeated id."""
    names = draw(st.lists(NAME, min_size=4, max_size=6, unique=True))
    keys = draw(st.lists(KEY, min_size=8, max_size=14, unique=True))
    content = of_one_kind(keys)
    runs: list[list[Event]] = []
    used: dict[str, list[str]] = {}
    for number in range(2):
        runs.append([])
        for place in range(draw(st.integers(25, 35))):
            name = draw(st.sampled_from(["Email Opened", *names]))
            again = used.setdefault(name, [])
            message_id = draw(st.sampled_from(again)) if again and place % 9 == 8 else f"m{number}-{place}"
            again.append(message_id)
            context = draw(content) if place % 3 == 0 else {}
            runs[-1].append(event(message_id, name, draw(content), context))
    return runs


def event(message_id: str, name: str, properties: Mapping[str, Any], context: Mapping[str, Any] | None = None) -> Event:
    """Return a track call."""
    return {
        "type": "track",
        "userId": "u",
        "messageId": message_id,
        "event": name,
        "properties": dict(properties),
        "context": dict(context or {}),
    }


class Warehouse:
    """A database, its landed events, and the expected content of its tables."""

    def __init__(self, database: Database, opened: Settings, connection: psycopg.Connection) -> None:
        self.database = database
        self.settings = opened
        self.connection = connection
        self.events: list[Event] = []

    def take(self, events: Iterable[Event]) -> None:
        """Land events in one transaction, run, and compare."""
        new = list(events)
        lines = b"\n".join(json.dumps(each).encode() for each in new)
        with SchemaRegistry().transaction(self.connection) as seen:
            landed = land(self.connection, "iterable", "file", parse_lines(lines, 0), seen, path="file")
        assert (landed.rows, landed.quarantined) == (len(new), 0)
        self.events += new
        run(self.database, self.settings, *MODELS)
        self.check()

    def check(self) -> None:
        """Compare everything with the model."""
        expected = expect(self.events)
        tables = self.rows(
            "select relname from pg_class where relnamespace = 'iterable'::regnamespace and relkind = 'r'"
        )
        assert {row["relname"] for row in tables} == {*KEPT, *expected}
        for name, table in expected.items():
            self._check_table(name, table)
        self._check_reports(expected)
        numbers = law(self.connection)
        assert numbers["accepted"] == len(self.events)
        assert numbers["waiting"] == numbers["quarantined"] == 0
        self._check_nothing_ran(expected)

    def rebuild(self) -> None:
        """Rebuild every table from all events, and check that nothing changes."""
        names = sorted({*KEPT, *expect(self.events)})
        before = {name: contents(self.connection, f"iterable.{name}") for name in names}
        mismatches = "select model, event_id, column_name, value from raw.mismatches order by 1, 2, 3"
        reported = self.rows(mismatches)
        run(self.database, self.settings, *MODELS, full_refresh=True)
        assert {name: contents(self.connection, f"iterable.{name}") for name in names} == before
        assert self.rows(mismatches) == reported
        self.check()

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, values or None).fetchall()

    def _check_table(self, name: str, table: Table) -> None:
        types = self.rows(
            "select attname, format_type(atttypid, atttypmod) as type from pg_attribute"
            " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
            f"iterable.{name}",
        )
        layout = {column.name: column.data_type for column in declared(name)}
        assert {row["attname"]: row["type"] for row in types} == layout | {
            column: known.data_type for column, known in table.columns.items()
        }, name
        rows = {row["id"]: row for row in self.rows(f"select * from iterable.{name}")}
        assert rows.keys() == table.rows.keys(), name
        for message_id, row in rows.items():
            source = table.rows[message_id]
            assert (row["user_id"], row["event_text"]) == ("u", source["event"])
            assert name in {"tracks", row["event"]}
            for column, known in table.columns.items():
                value = known.value(source)
                assert agrees(row[column], value, known.data_type), (name, message_id, column, row[column], value)

    def _check_reports(self, expected: Mapping[str, Table]) -> None:
        """Check that each value that does not fit and each property without a column is listed, and nothing else."""
        unfit = {
            (name, message_id, column)
            for name, table in expected.items()
            for message_id, source in table.rows.items()
            for column, known in table.columns.items()
            # An empty string is no value.
            if (value := known.value(source)) is not None and value != "" and fits(value, known.data_type) is None
        }
        listed = self.rows("select model, event_id, column_name from raw.mismatches")
        assert {tuple(row.values()) for row in listed} == unfit
        without = {(name, path) for name, table in expected.items() for path in table.without_column}
        collided = self.rows("select model, path from raw.collisions")
        assert {(row["model"], tuple(row["path"])) for row in collided} == without

    def _check_nothing_ran(self, expected: Mapping[str, Table]) -> None:
        """Check that code in a name was not run."""
        assert self.rows("select count(*) as rows from raw.events") == [{"rows": len(self.events)}]
        served = [f"iterable.{name}" for name in expected]
        for relation in (
            *served,
            "raw.collections",
            "raw.properties",
            "raw.columns",
            "raw.collisions",
            "pg_description",
        ):
            found = self.rows(f"select whole::text from {relation} as whole where whole::text like %s", f"%{LEAK}%")
            assert found == [], relation


@contextmanager
def warehouse(server: str, template: Settings, package: Path) -> Iterator[Warehouse]:
    """Return a database in which the table of every model exists and is empty."""
    os.environ["HOSTILE"] = LEAK
    try:
        with (
            used(package),
            own_database(server, template.home, template.database_url.rsplit("/", 1)[1]) as opened,
            open_database(opened) as database,
            database.connect(autocommit=True) as connection,
        ):
            connection.execute("set timezone = 'UTC'")
            yield Warehouse(database, opened, connection)
    finally:
        del os.environ["HOSTILE"]


@settings(
    max_examples=2,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(histories())
def test_the_tables_equal_the_layout_model_after_random_events(
    server: str, small_template: Settings, small_package: Path, runs: list[list[Event]]
) -> None:
    """Names and shapes are random. After each of several runs, every table equals the model, and so does a rebuild."""
    with warehouse(server, small_template, small_package) as house:
        for events in runs:
            house.take(events)
        house.rebuild()


@pytest.mark.heavy
def test_all_hostile_names_and_values_can_share_one_run(
    server: str, small_template: Settings, small_package: Path
) -> None:
    """Each hostile name, key and value is in one run, and then again with other types."""
    kinds: list[Callable[[int], Any]] = [
        lambda n: INTEGERS[n % len(INTEGERS)],
        lambda n: (
            [*NUMBERS, *TIMES, *NEAR_TIMES][n % 31]
            if n % 2
            else {KEYS[n % len(KEYS)]: STRINGS[n % len(STRINGS)], "a": {"": n, "b": ARRAYS[n % len(ARRAYS)]}}
        ),
    ]
    with warehouse(server, small_template, small_package) as house:
        for number, kind in enumerate(kinds):
            events = [
                event(f"{number}-{place}", name, {KEYS[(3 * place + n) % len(KEYS)]: kind(place + n) for n in range(9)})
                for place, name in enumerate(EVENTS)
            ]
            whole = {key: kind(place) for place, key in enumerate(KEYS)}
            events.append(event(f"{number}-whole", "Order Placed", whole, whole))
            events.append(event(f"{number}-declared", "Email Opened", whole, whole))
            house.take(events)
        house.rebuild()


def test_a_table_may_have_the_name_of_another_tables_key(
    server: str, small_template: Settings, small_package: Path
) -> None:
    """The key of `foo` is called `foo_pkey`. An event may have that name too, before or after `foo`."""
    with warehouse(server, small_template, small_package) as house:
        for names in (["Foo", "Bar Pkey", "Email Opened Pkey"], ["Foo Pkey", "Bar"]):
            house.take(event(name, name, {"a": 1}) for name in names)
        house.rebuild()


def test_names_that_differ_by_case_share_a_table(server: str, small_template: Settings, small_package: Path) -> None:
    """Events of one table keep their spelling, and their properties share a column."""
    runs = [{"Foo": 1, "foo": 2, "Open": 1}, {"FOO": 1.5, "_open": 1.5, "OPEN!": "2019-07-08T18:33:25Z"}]
    with warehouse(server, small_template, small_package) as house:
        for values in runs:
            house.take(event(name, name, {name: value}) for name, value in values.items())
        house.rebuild()
