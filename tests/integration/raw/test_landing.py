"""Landing in a real PostgreSQL: refused rows are found among the others, and other errors quarantine no row."""

import json
import os
from collections.abc import Iterable, Iterator

import psycopg
import pytest
from psycopg import errors

from loader.errors import DatabaseError
from loader.events.formats import ITERABLE_WEBHOOK, export_entrance, parse_message
from loader.events.model import Event, Reason, Refused
from loader.events.segment import parse_lines
from loader.files.streams import printable
from loader.postgres.database import Database
from loader.raw.landing import LandingResult, blames_row, explain, land

# A number that exceeds PostgreSQL's range, in valid JSON.
TOO_LARGE = b"1e200000"


def line(message_id: str, *, event: str = "Email Opened", value: bytes = b"1") -> bytes:
    """Return a track call as a line."""
    head = {"type": "track", "event": event, "userId": "u", "messageId": message_id}
    return json.dumps(head).encode()[:-1] + b',"properties":{"x":' + value + b"}}"


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit, like the connections of the loader's workers."""
    with database.connect(autocommit=True) as opened:
        yield opened


def land_lines(connection: psycopg.Connection, lines: Iterable[bytes], path: str | None = "file") -> LandingResult:
    """Land lines in a separate transaction."""
    with connection.transaction():
        return land(connection, "iterable", "file", parse_lines(b"\n".join(lines), 0), None, path=path)


def landed_ids(connection: psycopg.Connection) -> list[str]:
    """Return the message ids of all events, in the order they landed."""
    return [row[0] for row in connection.execute("select message_id from raw.events order by seq")]


def quarantined(
    connection: psycopg.Connection, columns: str = "reason, payload, byte_offset"
) -> list[tuple[object, ...]]:
    """Return the messages in quarantine, in the order of the file."""
    return connection.execute(f"select {columns} from raw.quarantine order by byte_offset").fetchall()


def break_on(connection: psycopg.Connection, message_id: str, statement: str) -> None:
    """Make the database run a statement when it stores the event with this id."""
    connection.execute(
        f"""
        create or replace function raw.break() returns trigger language plpgsql as $$
        begin
            if new.message_id = '{message_id}' then
                {statement};
            end if;
            return new;
        end
        $$;
        create or replace trigger break before insert on raw.events_email_opened
        for each row execute function raw.break()
        """
    )


def test_refused_rows_are_found_among_thousands(connection: psycopg.Connection) -> None:
    """Each refused row goes to quarantine, and every other row lands in order."""
    for places in [0], [1999], [777], [0, 1, 1000, 1999], [*range(100, 120)]:
        connection.execute("truncate raw.events, raw.quarantine")
        lines = [line(f"m{i}", value=TOO_LARGE if i in places else b"1") for i in range(2000)]
        offsets = [sum(len(each) + 1 for each in lines[:i]) for i in places]

        landed = land_lines(connection, lines)

        assert landed_ids(connection) == [f"m{i}" for i in range(2000) if i not in places]
        expected = [("refused_by_database", lines[i], offset) for i, offset in zip(places, offsets, strict=True)]
        assert quarantined(connection) == expected
        reasons = {"refused_by_database": len(places)}
        assert (landed.rows, landed.reasons, landed.repaired) == (2000 - len(places), reasons, 0)


def test_a_refused_row_keeps_the_error_of_the_database(connection: psycopg.Connection) -> None:
    """The message in quarantine has the SQLSTATE and the database's reason."""
    land_lines(connection, [line("m1", value=TOO_LARGE)], path="logs/a.ndjson")
    assert quarantined(connection, "source, entrance, path, detail, resolved_at") == [
        ("iterable", "file", "logs/a.ndjson", "22003: value overflows numeric format", None)
    ]


def test_when_every_row_is_refused_nothing_lands(connection: psycopg.Connection) -> None:
    """This worst case ends too, with each row in quarantine."""
    assert land_lines(connection, [line(f"m{i}", value=TOO_LARGE) for i in range(50)]).rows == 0
    assert landed_ids(connection) == []
    assert len(quarantined(connection)) == 50


def test_a_repaired_and_refused_line_is_one_message_in_quarantine(connection: psycopg.Connection) -> None:
    """A line that is repaired and then refused has not landed.

    The quarantine has one message with its original bytes.
    """
    lost = line(r"m1", value=rb'["\u0000",' + TOO_LARGE + b"]")
    mended = line("m2", value=rb'"\u0000"')
    landed = land_lines(connection, [lost, mended])
    assert landed_ids(connection) == ["m2"]
    assert quarantined(connection, "reason, payload, resolution") == [
        ("refused_by_database", lost, None),
        ("nul_character", mended, "repaired"),
    ]
    assert (landed.rows, landed.repaired) == (1, 1)
    assert landed.reasons == {"refused_by_database": 1, "nul_character": 1}


@pytest.mark.parametrize("entrance", [ITERABLE_WEBHOOK, export_entrance("emailOpen")])
def test_quarantine_keeps_the_senders_bytes_and_no_derived_call(connection: psycopg.Connection, entrance: str) -> None:
    """The quarantine has the bytes of the sender, and never the call that the loader made from them."""
    sent = [
        b'{"email":"%b","native":{"native":7},"eventName":"emailOpen", "dataFields":{"n":%b, "native":[]}}' % each
        for each in ((b"a@x", b"1"), (b"b@x", TOO_LARGE), (b"c@x", rb'["\u0000",' + TOO_LARGE + b"]"))
    ]
    messages = [message for offset, each in enumerate(sent) for message in parse_message(entrance, each, offset)]
    with connection.transaction():
        landed = land(connection, "iterable", entrance, messages, None, path="file")
    assert (landed.rows, landed.reasons) == (1, {"refused_by_database": 2})
    assert quarantined(connection, "payload") == [(each,) for each in sent[1:]]


def test_refusals_are_kept_with_their_place(connection: psycopg.Connection) -> None:
    """Messages refused by the parser are in quarantine beside those refused by the database, even invalid text."""
    land_lines(connection, [b"\xff\x00\\", line("m1"), b"{"], path=printable(os.fsdecode(b"caf\xe9.ndjson")))
    assert quarantined(connection, "reason, payload, byte_offset, path") == [
        ("invalid_utf8", b"\xff\x00\\", 0, "caf\ufffd.ndjson"),
        ("truncated_line", b"{", len(line("m1")) + 5, "caf\ufffd.ndjson"),
    ]


def test_a_lost_connection_quarantines_nothing(database: Database, connection: psycopg.Connection) -> None:
    """A server that ends the connection among the rows refuses none of the rows."""
    break_on(connection, "m1500", "perform pg_terminate_backend(pg_backend_pid())")
    with database.connect(autocommit=True) as doomed:
        with pytest.raises(psycopg.OperationalError):
            land_lines(doomed, [line(f"m{i}") for i in range(2000)] + [b"{"])
        assert doomed.closed
    assert landed_ids(connection) == []
    assert quarantined(connection) == []


def test_a_locked_table_quarantines_nothing(database: Database, connection: psycopg.Connection) -> None:
    """A wait for a lock that fails refuses no event."""
    connection.execute("set lock_timeout = '50ms'")
    with database.connect() as other:
        other.execute("lock table raw.events in access exclusive mode")
        with pytest.raises(errors.LockNotAvailable):
            land_lines(connection, [line("m1"), line("m2")])
    assert quarantined(connection) == []
    assert land_lines(connection, [line("m1"), line("m2")]).rows == 2


# SQLSTATEs, and whether the row caused the error.
STATES = {
    "22P02": True,  # invalid JSON
    "22P05": True,  # an escape without a character in the encoding
    "22003": True,  # a number that is too large
    "22021": True,  # bytes that are not text
    "22P04": True,  # a line that COPY cannot read
    "23514": True,  # a check
    "23505": True,  # an added unique key
    "54000": True,  # a value that is too large
    "54001": True,  # JSON that is nested too deep
    "53100": False,  # the disk is full
    "53200": False,  # out of memory
    "53300": False,  # too many connections
    "57014": False,  # the statement was cancelled
    "57P01": False,  # the server shuts down
    "57P03": False,  # the server starts up
    "55P03": False,  # a lock
    "40001": False,  # a serialization failure
    "40P01": False,  # a deadlock
    "25006": False,  # a read-only server
    "25P03": False,  # idle for too long
    "42501": False,  # a missing privilege
    "42P01": False,  # a missing table
    "42703": False,  # a missing column
    "0A000": False,  # an operation that this server supports for no row
    "58030": False,  # input and output
    "XX000": False,  # a bug
    "XX001": False,  # a damaged table
    "08006": False,  # the connection
}


@pytest.mark.parametrize(("state", "about_the_row"), STATES.items())
def test_only_some_errors_are_about_the_row(state: str, about_the_row: bool) -> None:
    """An error that another row would meet too never sends a row to quarantine."""
    assert blames_row(errors.lookup(state)("")) is about_the_row


def test_an_error_without_a_state_is_not_about_the_row() -> None:
    """Errors of the driver, such as a broken connection, have no SQLSTATE."""
    assert not blames_row(psycopg.OperationalError("the connection is closed"))


def test_a_real_server_error_refuses_one_row_or_stops_the_landing(connection: psycopg.Connection) -> None:
    """With real errors of a server, either one row is refused, or no row lands and the error is raised."""
    lines = [line(f"m{i}") for i in range(10)]
    for state in "53100", "57014", "22003", "23514":
        break_on(connection, "m3", f"raise exception 'as told' using errcode = '{state}'")
        if STATES[state]:
            assert land_lines(connection, lines).rows == 9
            assert quarantined(connection, "detail")[-1] == (f"{state}: as told",)
            connection.execute("truncate raw.quarantine")
        else:
            with pytest.raises(psycopg.Error, match="as told") as raised:
                land_lines(connection, lines)
            assert raised.value.sqlstate == state
            assert (landed_ids(connection), quarantined(connection)) == ([], [])


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ("53100", "disk is full"),
        ("57P01", "connection was lost"),
        ("08006", "connection was lost"),
        ("42501", "may write to the raw schema"),
        ("55P03", "continues after the last commit"),
    ],
)
def test_errors_of_the_database_name_the_next_step(state: str, advice: str) -> None:
    """The message has the SQLSTATE, the database's own message and the next step."""
    error = explain(errors.lookup(state)("first\nsecond"))
    assert isinstance(error, DatabaseError)
    assert state in str(error)
    assert advice in str(error)
    assert "\n" not in str(error)


def test_every_character_survives(connection: psycopg.Connection) -> None:
    """Ids and values are unchanged: tabs, backslashes, line ends, escapes of COPY, all Unicode."""
    odd = [
        "\\",
        "\\N",
        "\\.",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "\\t",
        "\\\\n",
        "\x7f",
        "\u2028",
        "\ufeff",
        "🎉",
        "é",
        "e\u0301",
        '"',
        "'",
    ]
    ids = odd + [f"{i}{chr(i)}" for i in range(1, 0x3000)] + [f"{i}{chr(i)}" for i in range(0x10000, 0x110000, 0x1111)]
    calls = [
        {"type": "track", "event": "Email Opened", "userId": i, "messageId": i, "properties": {i: [i]}} for i in ids
    ]
    lines = [json.dumps(call, ensure_ascii=bool(i % 2)).encode() for i, call in enumerate(calls)]
    assert land_lines(connection, lines).rows == len(ids)
    stored = connection.execute("select message_id, payload from raw.events order by seq").fetchall()
    assert [message_id for message_id, _ in stored] == ids
    assert [payload for _, payload in stored] == calls


def test_the_client_encoding_of_the_environment_does_not_change_text(
    database: Database, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is meant for psql does not change letters outside ASCII."""
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with database.connect(autocommit=True) as misled:
        land_lines(misled, ['{"type":"track","event":"E","userId":"é","messageId":"ü"}'.encode()])
    stored = connection.execute("select message_id, payload ->> 'userId' from raw.events").fetchall()
    assert stored == [("ü", "é")]


def test_white_space_in_a_payload_is_no_end_of_a_row(connection: psycopg.Connection) -> None:
    """Tabs and carriage returns between the tokens of a call do no harm."""
    spaced = line("m1").replace(b",", b"\t,\r ").replace(b":", b" :\t") + b"\t\r"
    land_lines(connection, [spaced, line("m2")])
    assert landed_ids(connection) == ["m1", "m2"]


def test_numbers_stay_exact(connection: psycopg.Connection) -> None:
    """No number becomes a float, however large or precise it is."""
    values = [str(2**70), "1" + "0" * 400, "0." + "1" * 60, "19.90"]
    land_lines(connection, [line(f"m{i}", value=value.encode()) for i, value in enumerate(values)])
    rows = connection.execute("select payload -> 'properties' ->> 'x' from raw.events order by seq").fetchall()
    assert [row[0] for row in rows] == values
    land_lines(connection, [line("large", value=b"1e400")])
    stored = connection.execute(
        "select (payload -> 'properties' ->> 'x')::numeric = 1e400 from raw.events where message_id = 'large'"
    ).fetchone()
    assert stored == (True,)


def test_an_event_lies_in_the_partition_of_its_collection(connection: psycopg.Connection) -> None:
    """A model finds all its events in one partition and no others. Calls other than track have no collection."""
    names = ["Email Opened", "emailOpened", "Web Push Send Skip", "Order Placed", "日本語"]
    lines = [line(f"m{i}", event=name) for i, name in enumerate(names)]
    land_lines(connection, [*lines, b'{"type":"identify","userId":"u","messageId":"m5"}'])
    stored = connection.execute(
        "select message_id, tableoid::regclass::text, collection, source from raw.events order by message_id"
    ).fetchall()
    assert stored == [
        ("m0", "raw.events_email_opened", "email_opened", "iterable"),
        ("m1", "raw.events_email_opened", "email_opened", "iterable"),
        ("m2", "raw.events_web_push_send_skip", "web_push_send_skip", "iterable"),
        ("m3", "raw.events_other", "order_placed", "iterable"),
        ("m4", "raw.events_other", "", "iterable"),
        ("m5", "raw.events_other", None, "iterable"),
    ]


def test_events_of_a_collection_keep_their_order(connection: psycopg.Connection) -> None:
    """Of two events with one id, the first in the file has the lower number, whatever lines lie between them."""
    names = ["Email Opened", "Order Placed", "SMS Bounced"]
    land_lines(connection, [line(f"m{i}", event=names[i % 3]) for i in range(999)])
    for i, collection in enumerate(["email_opened", "order_placed", "sms_bounced"]):
        rows = connection.execute("select message_id from raw.events where collection = %s order by seq", (collection,))
        assert [row[0] for row in rows] == [f"m{j}" for j in range(i, 999, 3)]


def test_the_time_of_receipt_is_the_given_time_or_now(connection: psycopg.Connection) -> None:
    """The receivedAt of a raw log is kept to the microsecond. An event without this time is received when it lands."""
    given = line("m1")[:-1] + b',"receivedAt":"2015-12-12T19:11:01.266123+05:30"}'
    land_lines(connection, [given, line("m2")])
    rows = connection.execute(
        "select received_at = '2015-12-12 13:41:01.266123Z', received_at = landed_at from raw.events order by seq"
    ).fetchall()
    assert rows == [(True, False), (False, True)]


@pytest.mark.parametrize(
    "value",
    [
        "2015-12-12T19:11:01.266Z",
        "2015-12-12 19:11:01.1234567+05",
        "2015-12-12T19:11:01.999999500-0330",
        "1999-12-31T23:59:59.123456789Z",
        "0001-01-01T00:00:00.5+14:00",
        "9999-12-31T23:59:59.999999-14",
    ],
)
def test_python_and_the_database_read_the_same_time_of_receipt(connection: psycopg.Connection, value: str) -> None:
    """The models compare the column with the payload's text, so both are the same time to the last digit."""
    land_lines(connection, [line("m1")[:-1] + f',"receivedAt":"{value}"}}'.encode()])
    rows = connection.execute("select received_at = (payload ->> 'receivedAt')::timestamptz from raw.events").fetchall()
    assert rows == [(True,)]


def test_landing_commits_nothing(database: Database, connection: psycopg.Connection) -> None:
    """After a rollback there are no events and no messages in quarantine."""
    messages = parse_lines(b"\n".join([line("m1"), b"{", line("m2", value=TOO_LARGE)]), 0)
    with database.connect() as other, other.transaction(force_rollback=True):
        assert land(other, "iterable", "file", messages, None).rows == 1
        assert connection.execute("select count(*) from raw.events").fetchone() == (0,)
    assert (landed_ids(connection), quarantined(connection)) == ([], [])


def test_landing_results_add_up() -> None:
    """The counts of several landings are added."""
    total = LandingResult(1)
    total.add(LandingResult(2))
    refused = Refused(b"{", 0, Reason.INVALID_JSON, "")
    other = LandingResult(3)
    other.reasons[refused.reason.value] += 2
    other.repaired = 1
    total.add(other)
    total.add(other)
    assert (total.rows, total.reasons, total.repaired, total.quarantined) == (9, {"invalid_json": 4}, 2, 4)


def test_an_empty_chunk_lands_without_an_error(connection: psycopg.Connection) -> None:
    """An empty chunk is no error."""
    messages: list[Event | Refused] = []
    assert land(connection, "iterable", "file", messages, None) == LandingResult()
