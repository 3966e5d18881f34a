"""The conformance vectors with undeclared tables and columns, by their numbers.

The command line loads the inputs as two files, with a run after each. So the second run finds existing tables. Message
ids distinguish the events of a vector.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from loader.settings import Settings
from tests.conftest import MakeOnce
from tests.support.layout_vectors import LONG, Rows, column_types, event, find, load_and_transform, reading

CONTEXT = {"library": {"name": "x", "version": "1"}}
KEYS = 10_001

FIRST = [
    event("v8", event="SMS Bounced"),
    event("v9", event="In App Clicked"),
    event("v10", event="iOS Opened 2x"),
    event("v11", event="Email Send Skip"),
    event("v12", event="Order Placed"),
    event("v13", event="101 Account Update"),
    event("v14", event="Open"),
    event("v23", properties={"legacyLastClick": "2019-07-08T18:33:25.000Z"}),
    event("v32_number", event="App Started", context=CONTEXT | {"app": {"build": 88}}),
    event("v32_string", event="App Stopped", context=CONTEXT | {"app": {"build": "88"}}),
    event("v33", event="Order Placed", properties={"product_id": {"sku": "G-32"}}),
    event("v35", event="Order Placed", properties={"channelIds": [1, 2]}),
    event("v36", event="Order Placed", properties={"labels": ["a", "b"]}),
    event("v39", properties={"nothing": None}),
    event("v40_null", properties={"foo": None}),
    event("v41", properties={"user": "bob"}),
    event("v44", event="Order Placed", properties={"user_id": "evil"}),
    event("v45", event="Order Placed", properties={"event": "birthday"}),
    event("v48", event="Order Placed", properties={"flag": True}),
    event("v49", event="Order Placed", properties={"price": 19.99}),
    event("v50_number", event="Order Placed", properties={"quantity": 3, "whole": 12.0, "mixed": 12}),
    event("v51_old", event="Order Placed", properties={"coupon": "A"}),
    event("v52", event="Order Placed", properties={"fromSMSSenderId": 7}),
    event("v54", event="Order Placed", properties={"note": LONG}),
]
SECOND = [
    event("v40_value", properties={"foo": "v"}),
    event("v50_text", event="Order Placed", properties={"quantity": "n/a", "mixed": 12.5}),
    event("v51_new", event="Order Placed", properties={"giftWrap": True}),
]


@pytest.fixture(scope="module")
def rows(make_once: MakeOnce, served_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """Return a connection to a database in which all inputs have been loaded and transformed, in two runs."""

    def fill(settings: Settings) -> None:
        for events in (FIRST, SECOND):
            load_and_transform(settings, tmp_path_factory.mktemp("vectors"), events)

    with reading(make_once("vectors_found", served_template, fill)) as connection:
        yield connection


@pytest.mark.parametrize(
    ("message_id", "table"),
    [
        pytest.param("v8", "sms_bounced", id="08"),
        pytest.param("v9", "in_app_clicked", id="09"),
        pytest.param("v10", "i_os_opened_2x", id="10"),
        pytest.param("v11", "email_send_skip", id="11"),
        pytest.param("v12", "order_placed", id="12"),
        pytest.param("v13", "_101_account_update", id="13"),
        pytest.param("v14", "_open", id="14"),
    ],
)
def test_vectors_08_to_14_every_event_has_its_table(rows: Rows, message_id: str, table: str) -> None:
    """An event is in the table of its name, declared or not, and `tracks.event` names the table."""
    assert find(rows, message_id, table)["event"] == table
    assert find(rows, message_id, "tracks")["event"] == table


def test_vector_15_a_found_table_is_a_table_of_the_layout(rows: Rows) -> None:
    """The layout's columns have their types, and the id is the key, as in a declared table."""
    types = column_types(rows, "order_placed")
    declared = column_types(rows, "email_opened")
    layout = ("id", "received_at", "uuid_ts", "anonymous_id", "user_id", "event", "event_text", "sent_at", "timestamp")
    assert {name: types[name] for name in layout} == {name: declared[name] for name in layout}
    key = rows.execute(
        "select conname, pg_get_constraintdef(oid) as definition from pg_constraint"
        " where conrelid = 'iterable.order_placed'::regclass and contype = 'p'"
    ).fetchone()
    assert key == {"conname": "order_placed_pkey", "definition": "PRIMARY KEY (id)"}


def test_vector_23_iso_times_are_times(rows: Rows) -> None:
    """A property with ISO 8601 times becomes a time."""
    assert column_types(rows, "email_opened")["legacy_last_click"] == "timestamp with time zone"
    assert find(rows, "v23")["legacy_last_click"] == datetime(2019, 7, 8, 18, 33, 25, tzinfo=UTC)


def test_vector_32_the_context_is_typed_by_its_values(rows: Rows) -> None:
    """A number is a bigint and a numeric string is text. Tracks has both, and holds them as text."""
    assert column_types(rows, "app_started")["context_app_build"] == "bigint"
    assert find(rows, "v32_number", "app_started")["context_app_build"] == 88
    assert column_types(rows, "app_stopped")["context_app_build"] == "text"
    assert find(rows, "v32_string", "app_stopped")["context_app_build"] == "88"
    assert column_types(rows, "tracks")["context_app_build"] == "text"
    assert [find(rows, f"v32_{kind}", "tracks")["context_app_build"] for kind in ("number", "string")] == ["88", "88"]


def test_vector_33_objects_are_flattened(rows: Rows) -> None:
    """An object has a column for each of its values, and no column of its own."""
    assert find(rows, "v33", "order_placed")["product_id_sku"] == "G-32"
    assert "product_id" not in column_types(rows, "order_placed")


@pytest.mark.parametrize(
    ("message_id", "column", "array"), [("v35", "channel_ids", [1, 2]), ("v36", "labels", ["a", "b"])]
)
def test_vectors_35_36_arrays_are_json_text(rows: Rows, message_id: str, column: str, array: list[Any]) -> None:
    """An array is one text column."""
    assert column_types(rows, "order_placed")[column] == "text"
    assert json.loads(find(rows, message_id, "order_placed")[column]) == array


def test_vector_39_null_makes_no_column(rows: Rows) -> None:
    """A property that is always null has no column."""
    assert find(rows, "v39")["id"] == "v39"
    assert "nothing" not in column_types(rows, "email_opened")


def test_vector_40_the_first_value_makes_the_column(rows: Rows) -> None:
    """Rows with an earlier null keep NULL."""
    assert column_types(rows, "email_opened")["foo"] == "text"
    assert find(rows, "v40_null")["foo"] is None
    assert find(rows, "v40_value")["foo"] == "v"


def test_vector_41_reserved_words_get_a_prefix(rows: Rows) -> None:
    """No column needs quotes."""
    assert column_types(rows, "email_opened")["_user"] == "text"
    assert rows.execute("select _user from iterable.email_opened where id = 'v41'").fetchone() == {"_user": "bob"}


@pytest.mark.parametrize(
    ("message_id", "column", "kept", "value"),
    [
        pytest.param("v44", "user_id", "u1", "evil", id="44"),
        pytest.param("v45", "event", "order_placed", "birthday", id="45"),
    ],
)
def test_vectors_44_45_the_layouts_columns_are_protected(
    rows: Rows, message_id: str, column: str, kept: str, value: str
) -> None:
    """A property never overwrites a column of the layout. It has no other column, and is reported."""
    row = find(rows, message_id, "order_placed")
    assert row[column] == kept
    assert value not in map(str, row.values())
    reported = rows.execute(
        "select column_name from raw.collisions where model = 'order_placed' and path = array['properties', %s]",
        (column,),
    )
    assert reported.fetchall() == [{"column_name": column}]


@pytest.mark.parametrize(
    ("message_id", "column", "data_type", "value"),
    [
        pytest.param("v48", "flag", "boolean", True, id="48"),
        pytest.param("v49", "price", "numeric", Decimal("19.99"), id="49"),
        pytest.param("v52", "from_smssender_id", "bigint", 7, id="52"),
        pytest.param("v54", "note", "text", LONG, id="54"),
    ],
)
def test_vectors_48_49_52_54_values_give_the_type(
    rows: Rows, message_id: str, column: str, data_type: str, value: object
) -> None:
    """A boolean is a boolean, a fraction numeric, an integer a bigint, and text is never cut."""
    assert column_types(rows, "order_placed")[column] == data_type
    assert find(rows, message_id, "order_placed")[column] == value


def test_vector_50_a_column_becomes_wide_enough(rows: Rows) -> None:
    """An undeclared column is widened. Segment drops values that an integer column cannot hold."""
    types = column_types(rows, "order_placed")
    assert (types["quantity"], types["mixed"], types["whole"]) == ("text", "numeric", "bigint")
    before, after = (find(rows, f"v50_{name}", "order_placed") for name in ("number", "text"))
    assert (before["quantity"], after["quantity"]) == ("3", "n/a")
    assert (before["mixed"], after["mixed"]) == (12, Decimal("12.5"))
    assert before["whole"] == 12
    assert rows.execute("select event_id from raw.mismatches where event_id like 'v50%'").fetchall() == []


def test_vector_51_a_new_property_is_a_new_column(rows: Rows) -> None:
    """Old rows have NULL there, and keep their values."""
    assert column_types(rows, "order_placed")["gift_wrap"] == "boolean"
    old, new = (find(rows, f"v51_{age}", "order_placed") for age in ("old", "new"))
    assert (old["coupon"], old["gift_wrap"]) == ("A", None)
    assert (new["coupon"], new["gift_wrap"]) == (None, True)
    assert old["uuid_ts"] < new["uuid_ts"]


@pytest.mark.heavy
def test_vector_53_properties_beyond_the_column_limit_are_listed(served_settings: Settings, tmp_path: Path) -> None:
    """The table gets as many columns as PostgreSQL permits, in the order of the keys.

    The others are in raw, and listed. `test_found_columns.py` has a table with a few more properties than columns.
    """
    wide = event("v53", event="Wide", properties={f"k{number}": "x" for number in range(KEYS)})
    load_and_transform(served_settings, tmp_path, [wide])
    with reading(served_settings) as rows:
        check_wide_table(rows)


def check_wide_table(rows: Rows) -> None:
    """Check the table and the lists of an event with more properties than a table has columns."""
    types = column_types(rows, "wide")
    assert len(types) == 1600
    row = find(rows, "v53", "wide")
    kept = [name for name in types if name.startswith("k")]
    assert kept == [f"k{number}" for number in range(len(kept))]
    assert {row[name] for name in kept} <= {"x", None}
    assert row["k0"] == "x"
    tracked = rows.execute(
        "select count(*) as properties from raw.properties where collection = 'wide' and path[1] = 'properties'"
    ).fetchone()
    full = rows.execute("select count(*) as properties from raw.collisions where model = 'wide'").fetchone()
    assert tracked is not None
    assert full is not None
    assert KEYS - 10 <= tracked["properties"] < KEYS
    assert full["properties"] == tracked["properties"] - len(kept)
    payload = rows.execute(
        "select count(*) as keys from raw.events, jsonb_object_keys(payload -> 'properties') where message_id = 'v53'"
    )
    assert payload.fetchone() == {"keys": KEYS}
