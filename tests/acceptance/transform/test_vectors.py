"""The conformance vectors without HTTP and without undeclared columns, by their numbers.

The command line loads all inputs as one file, and message ids distinguish the events of a vector. Other modules test
63, 64, 67, 68 and 70 to 73 (HTTP). `test_vectors_found.py` tests undeclared columns and tables. The vectors 1 to 5,
names of schemas, are tested with the names and the sources.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from loader.events.naming import table_name
from loader.settings import Settings
from tests.conftest import MakeOnce
from tests.support.layout_vectors import LONG, Rows, column_types, event, find, load_and_transform, reading

EVENTS = [
    event("v6"),
    event("v8", event="SMS Bounced"),
    event("v9", event="In App Clicked"),
    event("v10", event="iOS Opened 2x"),
    event("v11", event="Email Send Skip"),
    event("v13", event="101 Account Update"),
    event("v14", event="Open"),
    event("v16", properties={"campaignId": 1}),
    event("v16", properties={"campaignId": 2}),
    event(None, userId="v17"),
    event(None, userId="v17"),
    event("v18", userId=None, anonymousId="a@b.c"),
    event("v19", properties={"campaignId": 123}),
    event("v21", properties={"messageId": "abc"}),
    event("v22", properties={"createdAt": "2019-07-08 18:33:25 +00:00"}),
    event("v24", timestamp="2019-07-08 18:33:25 +00:00"),
    event(
        "v25",
        timestamp="2015-12-12T19:11:01.152Z",
        sentAt="2015-12-12T19:11:01.169Z",
        receivedAt="2015-12-12T19:11:01.266Z",
    ),
    event("v27"),
    event("v29", context={"traits": {"email": "e@x"}}),
    event("v30", context={"integration": {"name": "Iterable", "version": "1.0.0"}}),
    event("v31", context={"userAgent": "Mozilla", "os": {"name": "iOS"}, "ip": "203.0.113.24"}),
    event("v35", event="Unsubscribed", properties={"channelIds": [1, 2]}),
    event("v36", properties={"labels": ["a", "b"]}),
    event("v39", properties={"foo": None}),
    event("v44", properties={"user_id": "evil", "id": "evil", "received_at": "evil", "uuid_ts": "evil"}),
    event("v45", properties={"event": "birthday"}),
    event("v48", properties={"isBot": True}),
    event("v50", properties={"campaignId": "n/a", "campaignName": "kept"}),
    event("v52", event="SMS Delivered", properties={"fromSMSSenderId": 7}),
    event("v54", properties={"emailSubject": LONG}),
    event("v60", integrations={"All": False}),
    event("v66", userId=None),
    event(
        "v74",
        originalTimestamp="2019-01-01T00:00:00.000Z",
        timestamp="2019-01-01T00:00:07.000Z",
        sentAt="2019-01-01T00:00:01.000Z",
        receivedAt="2019-01-01T00:00:02.000Z",
    ),
    event("v_whole", properties={"campaignId": 12.0, "templateId": 12.5, "workflowId": 2**70}),
]


@pytest.fixture(scope="module")
def rows(make_once: MakeOnce, served_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """Return a connection to a database in which all inputs have been loaded and transformed."""

    def fill(settings: Settings) -> None:
        load_and_transform(settings, tmp_path_factory.mktemp("vectors"), EVENTS, code=3)  # v66 is refused

    with reading(make_once("vectors", served_template, fill)) as connection:
        yield connection


def test_vector_06_an_event_is_in_its_table_and_in_tracks(rows: Rows) -> None:
    """An event gives two rows with the same id."""
    assert find(rows, "v6")["id"] == find(rows, "v6", "tracks")["id"] == "v6"


def test_vector_07_event_names_the_table_and_event_text_keeps_the_name(rows: Rows) -> None:
    """`event` names the table, and `event_text` is the unchanged name."""
    for table in ("email_opened", "tracks"):
        row = find(rows, "v6", table)
        assert (row["event"], row["event_text"]) == ("email_opened", "Email Opened")


@pytest.mark.parametrize(
    ("message_id", "table"), [("v8", "sms_bounced"), ("v9", "in_app_clicked"), ("v11", "email_send_skip")]
)
def test_vectors_08_09_11_events_are_in_the_tables_of_their_names(rows: Rows, message_id: str, table: str) -> None:
    """An event is in the table of its name, and in tracks."""
    assert find(rows, message_id, table)["event"] == table
    assert find(rows, message_id, "tracks")["event"] == table


@pytest.mark.parametrize(
    ("message_id", "table"), [("v10", "i_os_opened_2x"), ("v13", "_101_account_update"), ("v14", "_open")]
)
def test_vectors_10_13_14_tracks_names_the_table_of_an_undeclared_event(
    rows: Rows, message_id: str, table: str
) -> None:
    """An undeclared event is in tracks, under the name of its table."""
    row = find(rows, message_id, "tracks")
    assert row["event"] == table == table_name(row["event_text"])


def test_vector_15_columns_have_the_types_of_the_layout(rows: Rows) -> None:
    """The id is the primary key, times are times, and strings are text."""
    types = column_types(rows, "email_opened")
    assert types["id"] == "character varying(1024)"
    for name in ("received_at", "uuid_ts", "sent_at", "timestamp"):
        assert types[name] == "timestamp with time zone"
    for name in ("anonymous_id", "user_id", "event", "event_text", "context_library_name", "email"):
        assert types[name] == "text"
    key = rows.execute(
        "select conname, pg_get_constraintdef(oid) as definition from pg_constraint"
        " where conrelid = 'iterable.email_opened'::regclass and contype = 'p'"
    ).fetchone()
    assert key == {"conname": "email_opened_pkey", "definition": "PRIMARY KEY (id)"}


def test_vector_16_one_id_is_one_row(rows: Rows) -> None:
    """Of two events with one id, the first landed is the row in each table."""
    assert find(rows, "v16")["campaign_id"] == 1
    assert find(rows, "v16", "tracks")["id"] == "v16"


def test_vector_17_each_event_without_an_id_is_a_row(rows: Rows) -> None:
    """Each event without an id gets an id of at most 100 characters."""
    found = rows.execute("select id from iterable.email_opened where user_id = 'v17'").fetchall()
    assert len({row["id"] for row in found}) == 2
    assert all(len(row["id"]) <= 100 for row in found)


def test_vector_18_a_row_without_a_user_id_has_the_anonymous_id(rows: Rows) -> None:
    """Without a user id, the row has the anonymous id."""
    row = find(rows, "v18")
    assert (row["anonymous_id"], row["user_id"]) == ("a@b.c", None)


def test_vector_19_a_declared_integer_is_a_bigint(rows: Rows) -> None:
    """A declared integer is a bigint."""
    assert find(rows, "v19")["campaign_id"] == 123
    assert column_types(rows, "email_opened")["campaign_id"] == "bigint"


def test_vector_21_the_property_message_id_has_its_own_column(rows: Rows) -> None:
    """Iterable's messageId is a separate column. The row's id is Segment's."""
    row = find(rows, "v21")
    assert (row["message_id"], row["id"]) == ("abc", "v21")


def test_vector_22_iterables_times_are_text(rows: Rows) -> None:
    """A time that is not ISO 8601 stays unchanged."""
    assert find(rows, "v22")["created_at"] == "2019-07-08 18:33:25 +00:00"
    assert column_types(rows, "email_opened")["created_at"] == "text"


def test_vector_24_original_timestamp_is_text_and_timestamp_is_not(rows: Rows) -> None:
    """The sender's time is kept as text, and also converted."""
    row = find(rows, "v24")
    assert row["original_timestamp"] == "2019-07-08 18:33:25 +00:00"
    assert row["timestamp"] == datetime(2019, 7, 8, 18, 33, 25, tzinfo=UTC)


def test_vector_25_the_senders_clock_is_corrected(rows: Rows) -> None:
    """The time of the event is receivedAt - (sentAt - originalTimestamp)."""
    row = find(rows, "v25")
    assert row["timestamp"] == datetime(2015, 12, 12, 19, 11, 1, 249_000, tzinfo=UTC)
    assert row["original_timestamp"] == "2015-12-12T19:11:01.152Z"
    assert row["sent_at"] == datetime(2015, 12, 12, 19, 11, 1, 169_000, tzinfo=UTC)


def test_vector_27_an_event_without_times_has_its_time_of_receipt(rows: Rows) -> None:
    """The time of an event without times is its time of receipt."""
    row = find(rows, "v27")
    assert row["timestamp"] == row["received_at"]
    assert (row["original_timestamp"], row["sent_at"]) == (None, None)


@pytest.mark.parametrize("table", ["email_opened", "tracks"])
def test_vectors_29_30_31_context_values_have_columns_with_a_prefix(rows: Rows, table: str) -> None:
    """Context values have columns with a prefix, in the collection and in tracks."""
    assert find(rows, "v29", table)["context_traits_email"] == "e@x"
    integration = find(rows, "v30", table)
    assert integration["context_integration_name"] == "Iterable"
    assert integration["context_integration_version"] == "1.0.0"
    client = find(rows, "v31", table)
    assert client["context_user_agent"] == "Mozilla"
    assert client["context_os_name"] == "iOS"
    assert client["context_ip"] == "203.0.113.24"


def test_vectors_35_36_arrays_are_json_text(rows: Rows) -> None:
    """An array is one text column."""
    assert json.loads(find(rows, "v35", "unsubscribed")["channel_ids"]) == [1, 2]
    assert json.loads(find(rows, "v36")["labels"]) == ["a", "b"]
    assert column_types(rows, "email_opened")["labels"] == "text"


def test_vector_39_null_makes_no_column(rows: Rows) -> None:
    """A property that is always null has no column."""
    assert find(rows, "v39")["id"] == "v39"
    assert "foo" not in column_types(rows, "email_opened")


def test_vectors_44_45_the_layouts_columns_are_protected(rows: Rows) -> None:
    """A property never overwrites a column of the layout."""
    row = find(rows, "v44")
    assert (row["user_id"], row["id"]) == ("u1", "v44")
    assert "evil" not in map(str, row.values())
    assert find(rows, "v45")["event"] == "email_opened"


def test_vector_48_a_declared_boolean_is_a_boolean(rows: Rows) -> None:
    """A declared boolean is a boolean."""
    assert find(rows, "v48")["is_bot"] is True
    assert column_types(rows, "email_opened")["is_bot"] == "boolean"


def test_vector_50_a_value_that_its_column_cannot_hold_is_reported(rows: Rows) -> None:
    """The row is kept with NULL for the value. The value is whole in raw, and listed."""
    row = find(rows, "v50")
    assert (row["campaign_id"], row["campaign_name"]) == (None, "kept")
    reported = rows.execute("select model, column_name, value from raw.mismatches where event_id = 'v50'").fetchall()
    assert reported == [{"model": "email_opened", "column_name": "campaign_id", "value": "n/a"}]
    raw = rows.execute("select payload #>> '{properties,campaignId}' as kept from raw.events where message_id = 'v50'")
    assert raw.fetchone() == {"kept": "n/a"}


def test_whole_floats_are_integers_and_fractions_are_mismatches(rows: Rows) -> None:
    """12.0 is 12. The value 12.5 and values beyond bigint are listed, not cut."""
    row = find(rows, "v_whole")
    assert (row["campaign_id"], row["template_id"], row["workflow_id"]) == (12, None, None)
    reported = rows.execute(
        "select column_name, value from raw.mismatches where event_id = 'v_whole' order by 1"
    ).fetchall()
    assert [tuple(report.values()) for report in reported] == [
        ("template_id", "12.5"),
        ("workflow_id", "1180591620717411303424"),
    ]


def test_vector_52_an_acronym_and_the_next_word_are_one_word(rows: Rows) -> None:
    """A run of capitals and the next word are one word."""
    assert find(rows, "v52", "sms_delivered")["from_smssender_id"] == 7
    assert column_types(rows, "sms_delivered")["from_smssender_id"] == "bigint"


def test_vector_54_text_is_never_cut(rows: Rows) -> None:
    """Long strings are complete."""
    assert find(rows, "v54")["email_subject"] == LONG


def test_vectors_60_62_integrations_and_envelope_fields_have_no_column(rows: Rows) -> None:
    """Integrations do not exclude an event, and other fields of the envelope have no columns."""
    assert find(rows, "v60")["id"] == "v60"
    for table in ("email_opened", "tracks"):
        columns = column_types(rows, table)
        assert not [c for c in columns if c in {"type", "version", "channel", "project_id"} or c.startswith("integr")]


def test_vector_66_an_event_without_a_user_goes_to_quarantine(rows: Rows) -> None:
    """An event without a user is refused with the reason, and kept."""
    refused = rows.execute("select reason, convert_from(payload, 'UTF8') as line from raw.quarantine").fetchall()
    assert [row["reason"] for row in refused] == ["no_user_anon_id"]
    assert json.loads(refused[0]["line"])["messageId"] == "v66"
    assert rows.execute("select id from iterable.tracks where id = 'v66'").fetchall() == []


def test_vector_74_raw_logs_keep_their_times(rows: Rows) -> None:
    """The times in Segment's raw logs are already corrected."""
    row = find(rows, "v74")
    assert row["received_at"] == datetime(2019, 1, 1, 0, 0, 2, tzinfo=UTC)
    assert row["timestamp"] == datetime(2019, 1, 1, 0, 0, 7, tzinfo=UTC)
    assert row["original_timestamp"] == "2019-01-01T00:00:00.000Z"
