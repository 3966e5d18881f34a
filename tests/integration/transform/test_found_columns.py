"""Tables follow the events: undeclared columns and tables, types that widen, and obstacles."""

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader.events.segment import parse_lines
from loader.postgres.database import Database
from loader.postgres.embedded import EmbeddedServer
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land
from loader.settings import Settings
from loader.transform.dbt import TableFilled, transform
from tests.support.factories import insert_payload
from tests.support.served_tables import assert_union, contents, everything, law

MODELS = ("email_delivered", "email_opened", "found_collections", "tracks")

DEFINITIONS = """
    create table public.runs (command text);
    create function public.note_command() returns event_trigger language plpgsql as $$
    begin
        insert into public.runs select object_identity || ' ' || command_tag
        from pg_event_trigger_ddl_commands() where schema_name = 'iterable';
    end
    $$;
"""
# This needs a superuser.
NOTED = "create event trigger note_commands on ddl_command_end execute function public.note_command()"


class Warehouse:
    """The events and tables of one source."""

    def __init__(self, database: Database, settings: Settings, connection: psycopg.Connection) -> None:
        self.database = database
        self.settings = settings
        self.connection = connection
        self._landed = 0

    def land(self, *properties: dict[str, Any], event: str = "Email Opened", context: object = None) -> None:
        """Land events e1, e2, … with these properties."""
        lines = []
        for each in properties:
            self._landed += 1
            call = {"type": "track", "event": event, "userId": "u", "messageId": f"e{self._landed}", "properties": each}
            lines.append(json.dumps(call | ({} if context is None else {"context": context})).encode())
        with SchemaRegistry().transaction(self.connection) as seen:
            land(self.connection, "iterable", "file", parse_lines(b"\n".join(lines), 0), seen)

    def run(self, **options: Any) -> dict[str, TableFilled]:
        """Run the models with events, none of which may fail; return the results of the tables that changed."""
        filled = transform(self.database, self.settings, select=MODELS, **options)
        assert not [table for table in filled if table.error]
        return {table.table: table for table in filled if table.rows or table.new_columns}

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self.connection.execute(query).fetchall()  # type: ignore[call-overload,no-any-return]

    def type_of(self, table: str, column: str) -> str | None:
        """Return a column's type, or None if there is no such column."""
        found = self.rows(
            "select format_type(atttypid, atttypmod) from pg_attribute"
            f" where attrelid = to_regclass('iterable.{table}') and attname = '{column}' and not attisdropped"
        )
        return found[0][0] if found else None


@pytest.fixture
def warehouse(small: Database, small_settings: Settings) -> Iterator[Warehouse]:
    """Return a warehouse with empty tables."""
    with small.connect(autocommit=True) as connection:
        yield Warehouse(small, small_settings, connection)


def test_a_new_property_becomes_a_column_once(warehouse: Warehouse, shared_home: Path) -> None:
    """The run that reads its first event adds the column.

    Older rows have NULL, and no later run changes the columns.
    """
    warehouse.land({"campaignId": 1})
    warehouse.run()
    warehouse.land({"fromSMSSenderId": 7, "deep": {"Ship To": {"city": "Köln"}}, "none": None, "empty": {}})
    assert warehouse.run()["email_opened"].new_columns == ("from_smssender_id", "deep_ship_to_city")
    warehouse.connection.execute(DEFINITIONS)
    with EmbeddedServer(shared_home).connect(warehouse.connection.info.dbname, as_keeper=True) as superuser:
        superuser.execute(NOTED)
    warehouse.land({"fromSMSSenderId": 8})
    assert warehouse.run()["email_opened"].new_columns == ()
    assert warehouse.rows("select id, from_smssender_id, deep_ship_to_city from iterable.email_opened order by id") == [
        ("e1", None, None),
        ("e2", 7, "Köln"),
        ("e3", 8, None),
    ]
    assert warehouse.rows("select * from runs") == []
    assert warehouse.type_of("email_opened", "none") is None


def test_context_becomes_columns_of_the_table_and_of_tracks(warehouse: Warehouse) -> None:
    """The column has the prefix `context`. Tracks gets the context of every collection."""
    warehouse.land({}, context={"app": {"build": 88}})
    warehouse.land({}, event="Email Delivered", context={"app": {"build": "88b"}})
    warehouse.run()
    assert warehouse.rows("select id, context_app_build from iterable.tracks order by id") == [
        ("e1", "88"),
        ("e2", "88b"),
    ]
    assert warehouse.type_of("email_opened", "context_app_build") == "bigint"
    assert warehouse.type_of("email_delivered", "context_app_build") == "text"


# By property: the first event's value, the second's, the type that holds both, and the values in the table.
WIDENED: dict[str, tuple[Any, Any, str, list[str]]] = {
    "fraction": (12, 12.5, "numeric", ["12", "12.5"]),
    "large": (12, 2**70, "numeric", ["12", str(2**70)]),
    "word": (12.0, "n/a", "text", ["12.0", "n/a"]),
    "flag": (True, 1, "text", ["true", "1"]),
    "time": (
        "2019-07-08T18:33:25.000Z",
        "2017-05-15 23:59:47 +00:00",
        "text",
        ["2019-07-08T18:33:25.000Z", "2017-05-15 23:59:47 +00:00"],
    ),
    "list": (7, [1, "a"], "text", ["7", '[1, "a"]']),
    "digits": ("7", 7, "text", ["7", "7"]),
    "same": (7, 8, "bigint", ["7", "8"]),
}


def test_a_column_widens_to_hold_every_value(warehouse: Warehouse) -> None:
    """The run that needs the wider type widens the column. Existing values are spelled as after a rebuild."""
    warehouse.land({name: case[0] for name, case in WIDENED.items()})
    warehouse.run()
    warehouse.land({name: case[1] for name, case in WIDENED.items()})
    warehouse.run()
    assert {name: warehouse.type_of("email_opened", name) for name in WIDENED} == {
        name: case[2] for name, case in WIDENED.items()
    }
    for name, case in WIDENED.items():
        shown = warehouse.rows(f'select "{name}"::text from iterable.email_opened order by id')
        assert [row[0] for row in shown] == case[3]
    assert warehouse.rows("select * from raw.mismatches") == []
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


def test_a_declared_column_keeps_its_type(warehouse: Warehouse) -> None:
    """A value that does not fit is NULL and listed.

    A second spelling of the property fills the column if the first is absent.
    """
    warehouse.land({"campaignId": "many"}, {"campaign_id": 9}, {"campaign_id": 8, "campaignId": 7})
    warehouse.run()
    assert warehouse.type_of("email_opened", "campaign_id") == "bigint"
    assert warehouse.rows("select id, campaign_id from iterable.email_opened order by id") == [
        ("e1", None),
        ("e2", 9),
        ("e3", 7),
    ]
    assert warehouse.rows("select event_id, column_name, value from raw.mismatches") == [("e1", "campaign_id", "many")]
    assert warehouse.rows("select path, reason from raw.collisions") == [(["properties", "campaign_id"], "shared")]


def test_a_view_blocks_a_widening_until_the_widen_command(warehouse: Warehouse) -> None:
    """The run continues with NULL and a note. `widen` makes the views again with their owner, grants and comments."""
    warehouse.land({"found": True})
    warehouse.run()
    warehouse.connection.execute("""
        create role bi_reader;
        grant create on schema public to bi_reader;
        create view public.opened as select id, found from iterable.email_opened;
        create view public.counted as select found, count(*) as events from public.opened group by found;
        create materialized view public.kept as select found from public.opened;
        create index kept_found on public.kept (found);
        comment on view public.opened is 'of the readers';
        comment on column public.opened.found is 'or not';
        grant select on public.opened to bi_reader;
        grant select (events) on public.counted to bi_reader;
        alter view public.counted owner to bi_reader;
    """)
    warehouse.land({"found": "maybe"})
    warehouse.run()
    assert warehouse.rows("select id, found from public.opened order by id") == [("e1", True), ("e2", None)]
    assert warehouse.rows("select event_id, value from raw.mismatches") == [("e2", "maybe")]
    waiting = "select column_name, data_type, wanted_type, in_the_way from raw.columns where wanted_type is not null"
    assert warehouse.rows(waiting) == [("found", "boolean", "text", "public.counted, public.kept, public.opened")]

    warehouse.run(widen=True)

    assert warehouse.rows("select id, found from public.opened order by id") == [("e1", "true"), ("e2", "maybe")]
    assert warehouse.rows("select found, events from public.counted order by found") == [("maybe", 1), ("true", 1)]
    assert warehouse.rows("select * from raw.mismatches") == []
    assert warehouse.rows(waiting) == []
    assert warehouse.rows("""
        select
            has_table_privilege('bi_reader', 'public.opened', 'select'),
            has_column_privilege('bi_reader', 'public.counted', 'events', 'select'),
            obj_description('public.opened'::regclass),
            col_description('public.opened'::regclass, 2),
            pg_get_userbyid((select relowner from pg_class where oid = 'public.counted'::regclass)),
            to_regclass('public.kept_found') is not null
    """) == [(True, True, "of the readers", "or not", "bi_reader", True)]


def test_an_event_without_a_model_gets_a_table(warehouse: Warehouse) -> None:
    """The same run makes it, with key, comments and the columns of all tables. Later runs add rows."""
    warehouse.land({"total": 5}, event="Order Placed")
    assert warehouse.run()["order_placed"].rows == 1
    warehouse.land({"total": 6.5, "coupon": "x"}, event="order_placed")
    warehouse.run()
    assert warehouse.rows("select id, event, event_text, total, coupon from iterable.order_placed order by id") == [
        ("e1", "order_placed", "Order Placed", 5, None),
        ("e2", "order_placed", "order_placed", 6.5, "x"),
    ]
    assert "Order Placed" in warehouse.rows("select obj_description('iterable.order_placed'::regclass)")[0][0]
    assert warehouse.rows(
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'iterable.order_placed'::regclass"
        " and contype = 'p'"
    ) == [("PRIMARY KEY (id)",)]
    before = everything(warehouse.connection)
    assert len(contents(warehouse.connection, "iterable.order_placed")) == 2
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before
    assert law(warehouse.connection)["in_collections"] == 2


def test_a_failing_table_delays_the_other_tables_by_one_run(warehouse: Warehouse) -> None:
    """The run fails for this table each time. From the second run on, all other tables are filled."""
    warehouse.land({}, event="First")
    warehouse.land({}, event="Second")
    warehouse.run()
    warehouse.connection.execute("""
        create function public.refuse() returns trigger language plpgsql as
        $$ begin if new.model = 'first' then raise exception 'refuse'; end if; return new; end $$;
        create trigger refused before insert on raw.syncs for each row execute function refuse();
    """)
    warehouse.land({}, event="First")
    warehouse.land({}, event="Second")
    for rows in ([("e2",)], [("e2",), ("e4",)]):
        (failed,) = [table for table in transform(warehouse.database, warehouse.settings, select=MODELS) if table.error]
        assert "refuse" in failed.error
        assert warehouse.rows("select id from iterable.second order by id") == rows
    warehouse.connection.execute("drop trigger refused on raw.syncs")
    warehouse.run()
    assert warehouse.rows("select id from iterable.first order by id") == [("e1",), ("e3",)]
    assert warehouse.rows("select tried_at from raw.collections where tried_at is not null") == []


def test_tables_of_found_events_are_limited(warehouse: Warehouse) -> None:
    """Events of names beyond the limit are in tracks, and `status` lists them."""
    limited = warehouse.settings.model_copy(update={"tables": 1})
    warehouse.land({}, event="First")
    warehouse.land({}, event="Second")
    transform(warehouse.database, limited)
    assert warehouse.rows("select to_regclass('iterable.first') is null, to_regclass('iterable.second') is null") == [
        (False, True)
    ]
    assert warehouse.rows("select event from iterable.tracks order by event") == [("first",), ("second",)]
    warehouse.run()
    assert warehouse.rows("select id from iterable.second") == [("e2",)]


def test_a_full_table_lists_the_values_without_a_column(warehouse: Warehouse) -> None:
    """The limit is 1,600 columns, whoever has added them. Later runs go on."""
    warehouse.land({"p0": 0}, event="Wide")
    warehouse.run()
    columns = "select count(*) from pg_attribute where attrelid = 'iterable.wide'::regclass and attnum > 0"
    [(present,)] = warehouse.rows(columns)
    added = ", ".join(f"add column own{i} boolean" for i in range(1598 - present))
    warehouse.connection.execute(f"alter table iterable.wide {added}".encode())
    warehouse.land({f"p{i}": i for i in range(5)}, event="Wide")
    warehouse.run()
    assert warehouse.rows(columns) == [(1600,)]
    assert warehouse.rows("select id, p0, p1, p2 from iterable.wide order by id") == [
        ("e1", 0, None, None),
        ("e2", 0, 1, 2),
    ]
    assert warehouse.rows("select path, reason from raw.collisions order by path") == [
        (["properties", "p3"], "full"),
        (["properties", "p4"], "full"),
    ]
    warehouse.land({"p3": 3}, event="Wide")
    assert warehouse.run()["wide"].rows == 1


@pytest.mark.heavy
def test_a_table_has_no_more_columns_than_postgresql_allows(warehouse: Warehouse) -> None:
    """A table that is filled up to the limit has rows that fit on a page."""
    warehouse.land({f"p{i}": i for i in range(1700)}, {"p1": 1, "p1500": 2}, event="Wide")
    warehouse.run()
    assert warehouse.rows(
        "select count(*) from pg_attribute where attrelid = 'iterable.wide'::regclass and attnum > 0"
    ) == [(1600,)]
    assert warehouse.rows("select id, p1, p1500 from iterable.wide order by id") == [("e1", 1, None), ("e2", 1, 2)]
    assert warehouse.rows("select event_id, column_name from raw.mismatches") == [("e1", "*")]
    assert warehouse.rows("select reason, count(*) from raw.collisions group by reason") == [("full", 110)]
    warehouse.land({"p3": 3}, event="Wide")
    assert warehouse.run()["wide"].rows == 1


def test_a_column_given_another_type_by_hand_is_left_alone(warehouse: Warehouse) -> None:
    """The team owns the table. Values that its type cannot hold are NULL and listed."""
    warehouse.land({"found": 1})
    warehouse.run()
    warehouse.connection.execute("alter table iterable.email_opened alter column found type double precision")
    warehouse.land({"found": 2.5}, {"found": "x"})
    warehouse.run()
    assert warehouse.type_of("email_opened", "found") == "double precision"
    assert warehouse.rows("select found from iterable.email_opened order by id") == [(1.0,), (2.5,), (None,)]
    assert warehouse.rows("select event_id, value from raw.mismatches") == [("e3", "x")]


def test_invariants_hold_while_columns_come_and_widen(warehouse: Warehouse) -> None:
    """Events land during the runs. The tables equal a rebuild, and the conservation law counts every event."""
    values: list[Any] = [1, 2.5, True, "x", "2019-07-08T18:33:25.000Z", [1], {"deep": 1}, None, 2**70]
    halfway = threading.Barrier(3)

    def load(loader: int) -> int:
        chance = random.Random(loader)
        with warehouse.database.connect(autocommit=True) as connection:
            registry = SchemaRegistry()
            for batch in range(12):
                if batch == 6:
                    halfway.wait(timeout=60)
                lines = []
                for number in range(10):
                    call = {
                        "type": "track",
                        "event": chance.choice(["Email Opened", "Order Placed", f"Event {chance.randrange(4)}"]),
                        "userId": "u",
                        "messageId": f"{loader}-{batch}-{number}",
                        "properties": {f"p{chance.randrange(batch + 1)}": chance.choice(values) for _ in range(3)},
                        "context": {"app": {f"c{chance.randrange(5)}": chance.choice(values)}},
                    }
                    lines.append(json.dumps(call).encode())
                with registry.transaction(connection) as seen:
                    land(connection, "iterable", "file", parse_lines(b"\n".join(lines), 0), seen)
        return 120

    with ThreadPoolExecutor(2) as loaders:
        landed = [loaders.submit(load, number) for number in range(2)]
        warehouse.run()
        halfway.wait(timeout=60)
        while not all(each.done() for each in landed):
            warehouse.run()
        assert sum(each.result() for each in landed) == 240
    warehouse.run()

    assert_union(warehouse.connection)
    told = law(warehouse.connection)
    assert (told["in_collections"], told["waiting"]) == (240, 0)
    assert warehouse.rows("select column_name from raw.mismatches") == []
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


def moments(warehouse: Warehouse) -> dict[str, Any]:
    """Return each row's `uuid_ts`."""
    return dict(warehouse.rows("select id, uuid_ts from iterable.email_opened"))


def land_again(connection: psycopg.Connection, message_id: str, user: str, properties: dict[str, Any]) -> None:
    """Land an event whose properties are all known."""
    insert_payload(connection, message_id, {"event": "Email Opened", "userId": user, "properties": properties})


def test_a16_a_refill_sets_uuid_ts_on_the_rows_it_changes(warehouse: Warehouse) -> None:
    """No other row changes, so a reader of increments by `uuid_ts` sees each change once."""
    warehouse.land({"found": 12.0}, {"found": 12}, {"other": 1})
    warehouse.run()
    before = moments(warehouse)
    warehouse.land({"found": "word"})
    warehouse.run()
    assert warehouse.rows("select id, found from iterable.email_opened order by id") == [
        ("e1", "12.0"),
        ("e2", "12"),
        ("e3", None),
        ("e4", "word"),
    ]
    after = moments(warehouse)
    assert after["e1"] == after["e4"] > before["e1"]
    assert (after["e2"], after["e3"]) == (before["e2"], before["e3"])


def test_a16_a_refilled_row_gives_way_to_an_earlier_event_that_commits_late(warehouse: Warehouse) -> None:
    """The first landed event counts, although `uuid_ts` no longer names the run that added the row."""
    warehouse.land({"found": 12})
    warehouse.run()
    with warehouse.database.connect() as late:
        land_again(late, "x", "first", {"found": 7.0})
        land_again(warehouse.connection, "x", "second", {"found": 12.0})
        warehouse.run()
        warehouse.land({})
        warehouse.run()
        warehouse.land({"found": "word"})
        warehouse.run()
        refilled = moments(warehouse)
        assert refilled["x"] == refilled["e3"]
        late.commit()
    warehouse.run()
    assert warehouse.rows("select user_id, found from iterable.email_opened where id = 'x'") == [("first", "7.0")]
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


def test_a16_a_repeated_event_is_not_noted_as_the_mismatch_of_the_row(warehouse: Warehouse) -> None:
    """The run that refills the row does not list the event, and later runs do not list the event."""
    warehouse.land({"found": 12.0, "campaignId": 1})
    warehouse.run()
    land_again(warehouse.connection, "e1", "u", {"campaignId": "many"})
    warehouse.run()
    warehouse.land({"found": "word"})
    land_again(warehouse.connection, "e1", "u", {"campaignId": "more"})
    land_again(warehouse.connection, "e2", "u", {"campaignId": "most"})
    warehouse.run()
    assert warehouse.rows("select id, found, campaign_id from iterable.email_opened order by id") == [
        ("e1", "12.0", 1),
        ("e2", "word", None),
    ]
    assert warehouse.rows("select event_id, value from raw.mismatches") == []
    warehouse.land({"campaignId": "lost"})
    land_again(warehouse.connection, "e3", "u", {"campaignId": 3})
    warehouse.run()
    assert warehouse.rows("select event_id, value from raw.mismatches") == [("e3", "lost")]


def test_a16_a_repeated_event_is_not_noted_as_too_wide(warehouse: Warehouse) -> None:
    """An event that did not make the row adds no note about the row."""
    # Each text counts for 18 bytes of a page with room for 7,900.
    texts = {f"p{i}": "x" for i in range(450)}
    warehouse.land({"p1": "x"}, event="Wide")
    warehouse.land(texts, event="Wide")
    warehouse.run()
    assert warehouse.rows("select event_id from raw.mismatches") == [("e2",)]
    payload = {"event": "Wide", "userId": "u", "properties": texts}
    insert_payload(warehouse.connection, "e1", payload, collection="wide")
    warehouse.run()
    assert warehouse.rows("select event_id from raw.mismatches") == [("e2",)]
