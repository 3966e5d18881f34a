"""The quarantine from the command line: refused messages are listed, corrected and landed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Loader
from tests.support.factories import landed

# The lines of the fixture's file beside two good lines, in order: three refused lines and a repaired line.
BROKEN = b'{"type":"track","event":"Email Opened","userId":"u1","messageId":"broken",}'
NOBODY = b'{"type":"track","event":"Email Opened","messageId":"nobody"}'
TOO_LARGE = b'{"type":"track","event":"SMS Bounced","userId":"u","messageId":"large","properties":{"x":1e200000}}'
REPAIRED = rb'{"type":"track","event":"Email Opened","userId":"u\u0000","messageId":"repaired"}'
GOOD = b'{"type":"track","event":"Email Opened","userId":"u","messageId":"good"}'

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def loaded(run_here: Loader, tmp_path: Path) -> Path:
    """Return a file that has been loaded, with lines of every outcome."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"\n".join([BROKEN, GOOD, NOBODY, TOO_LARGE, REPAIRED, b""]))
    assert run_here("load", str(path)).returncode == 3
    return path


@pytest.fixture
def numbers(loaded: Path, connection: psycopg.Connection) -> dict[str, str]:
    """Return the numbers of the messages in quarantine, by reason."""
    return {reason: str(number) for reason, number in connection.execute("select reason, id from raw.quarantine")}


def told(done: Done) -> list[str]:
    """Return the lines that a command wrote to stderr, and check that they contain no traceback."""
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr.splitlines()


def listed(done: Done) -> list[dict[str, Any]]:
    """Return the output of `quarantine list --json`."""
    assert (done.returncode, told(done)) == (0, [])
    return list(json.loads(done.stdout))


def resolutions(connection: psycopg.Connection) -> dict[str, str | None]:
    """Return the resolution of each message in quarantine, by reason."""
    return dict(connection.execute("select reason, resolution from raw.quarantine").fetchall())


def test_list_shows_open_messages(run_here: Loader, loaded: Path) -> None:
    """Every message that has not landed is listed with reason, place and size, the newest first."""
    rows = listed(run_here("quarantine", "list", "--json"))
    assert {row["reason"]: (row["path"], row["offset"], row["bytes"], row["landed"]) for row in rows} == {
        "invalid_json": (str(loaded), 0, len(BROKEN), None),
        "no_user_anon_id": (str(loaded), len(BROKEN) + len(GOOD) + 2, len(NOBODY), None),
        "refused_by_database": (str(loaded), len(BROKEN) + len(GOOD) + len(NOBODY) + 3, len(TOO_LARGE), None),
    }
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)
    assert {row["source"] for row in rows} == {"iterable"}
    assert set(rows[0]) == {"id", "reason", "detail", "source", "path", "offset", "bytes", "received_at", "landed"}


def test_list_without_json_prints_a_table(run_here: Loader, loaded: Path) -> None:
    """The list has a heading and an unwrapped line for each message."""
    done = run_here("quarantine", "list")
    heading, _, *rows = done.stdout.splitlines()
    assert heading.split()[:3] == ["id", "reason", "detail"]
    assert len(rows) == 3
    assert any("trailing comma" in row and str(loaded) in row for row in rows)


def test_the_options_of_list_select_messages(run_here: Loader, loaded: Path) -> None:
    """--reason, --limit and --all select messages, and --all adds landed messages."""
    assert [row["reason"] for row in listed(run_here("quarantine", "list", "--json", "--reason", "invalid_json"))] == [
        "invalid_json"
    ]
    assert len(listed(run_here("quarantine", "list", "--json", "--limit", "2"))) == 2
    everything = {row["reason"]: row["landed"] for row in listed(run_here("quarantine", "list", "--json", "--all"))}
    assert everything == {
        "invalid_json": None,
        "no_user_anon_id": None,
        "refused_by_database": None,
        "nul_character": "repaired",
    }


def test_list_reports_an_empty_quarantine(run_here: Loader) -> None:
    """An empty list is `[]` for scripts, and a sentence for people."""
    assert listed(run_here("quarantine", "list", "--json")) == []
    assert run_here("quarantine", "list").stdout == "Nothing is in quarantine.\n"


def test_show_prints_the_original_bytes(run_here: Loader, loaded: Path, numbers: dict[str, str]) -> None:
    """Only the message goes to stdout, so people can correct it in a file. The reason goes to stderr."""
    done = run_here("quarantine", "show", numbers["nul_character"])
    assert (done.returncode, done.stdout) == (0, REPAIRED.decode() + "\n")
    done = run_here("quarantine", "show", numbers["refused_by_database"])
    assert (done.returncode, done.stdout) == (0, TOO_LARGE.decode() + "\n")
    what, where = told(done)
    assert what == "refused_by_database: 22003: value overflows numeric format"
    assert where.startswith(f"from {loaded} at byte {len(BROKEN) + len(GOOD) + len(NOBODY) + 3}, received ")


def test_a_corrected_message_lands(
    run_here: Loader, connection: psycopg.Connection, numbers: dict[str, str], tmp_path: Path
) -> None:
    """A corrected message lands in place of the original, from a file or from stdin, in any formatting."""
    mended = tmp_path / "mended.json"
    mended.write_text(json.dumps({"userId": "u1"} | json.loads(NOBODY), indent=2) + "\n", encoding="utf-8")
    done = run_here("quarantine", "retry", numbers["no_user_anon_id"], "--file", str(mended))
    assert (done.returncode, done.stdout, told(done)) == (0, "1 message landed, 0 still refused\n", [])

    done = run_here("quarantine", "retry", numbers["invalid_json"], "--file", "-", stdin=BROKEN.replace(b",}", b"}"))
    assert (done.returncode, done.stdout) == (0, "1 message landed, 0 still refused\n")

    assert sorted(landed(connection)) == ["broken", "good", "nobody", "repaired"]
    assert resolutions(connection) == {
        "invalid_json": "replaced",
        "no_user_anon_id": "replaced",
        "refused_by_database": None,
        "nul_character": "repaired",
    }


def test_an_invalid_correction_is_refused(
    run_here: Loader, connection: psycopg.Connection, numbers: dict[str, str]
) -> None:
    """The command gives the error, no event lands, and the message stays unchanged. The exit code is 3."""
    number = numbers["invalid_json"]
    for correction, why in (
        (b"{", "truncated_line"),
        (b"\n", "the message is empty"),
        (TOO_LARGE, "the database refuses the message as before"),
        (GOOD + b"\n" + GOOD, "invalid_json"),
    ):
        done = run_here("quarantine", "retry", number, "--file", "-", stdin=correction)
        assert (done.returncode, done.stdout) == (3, "0 messages landed, 1 still refused\n")
        (line,) = told(done)
        assert line.startswith(f"{number}: {why}")
    assert sorted(landed(connection)) == ["good", "repaired"]
    assert listed(run_here("quarantine", "list", "--json", "--reason", "invalid_json"))[0]["bytes"] == len(BROKEN)


def test_retry_lands_messages_that_have_become_acceptable(
    run_here: Loader, connection: psycopg.Connection, numbers: dict[str, str]
) -> None:
    """All open messages are tried. Landed messages are resolved and the others stay, with exit code 3."""
    # This is the state after an upgrade that can read more messages.
    connection.execute("update raw.quarantine set payload = %s where reason = 'no_user_anon_id'", (GOOD,))
    done = run_here("quarantine", "retry", "--all")
    assert (done.returncode, done.stdout) == (3, "1 message landed, 2 still refused\n")
    assert [line.split(":")[0] for line in told(done)] == [numbers["invalid_json"], numbers["refused_by_database"]]
    assert sorted(landed(connection)) == ["good", "good", "repaired"]
    assert resolutions(connection)["no_user_anon_id"] == "retried"


def test_retry_by_reason_tries_only_the_messages_with_that_reason(
    run_here: Loader, connection: psycopg.Connection, loaded: Path
) -> None:
    """Only the messages with that reason are tried."""
    connection.execute("update raw.quarantine set payload = %s where resolved_at is null", (GOOD,))
    done = run_here("quarantine", "retry", "--reason", "invalid_json")
    assert (done.returncode, done.stdout) == (0, "1 message landed, 0 still refused\n")
    assert [reason for reason, how in resolutions(connection).items() if how == "retried"] == ["invalid_json"]
    done = run_here("quarantine", "retry", "--reason", "no_such_reason")
    assert (done.returncode, done.stdout) == (0, "0 messages landed, 0 still refused\n")


def test_a_number_given_twice_is_tried_once(
    run_here: Loader, connection: psycopg.Connection, numbers: dict[str, str]
) -> None:
    """No message lands twice."""
    connection.execute("update raw.quarantine set payload = %s where resolved_at is null", (GOOD,))
    number = numbers["invalid_json"]
    done = run_here("quarantine", "retry", number, number)
    assert (done.returncode, done.stdout) == (0, "1 message landed, 0 still refused\n")
    assert sorted(landed(connection)) == ["good", "good", "repaired"]


def test_an_event_keeps_its_id_from_one_retry_to_the_next(
    run_here: Loader, connection: psycopg.Connection, numbers: dict[str, str]
) -> None:
    """An event without a message id gets the id that it would have had in its file."""
    line = b'{"type":"track","event":"Email Opened","userId":"u"}'
    for reason in ("invalid_json", "no_user_anon_id"):
        assert run_here("quarantine", "retry", numbers[reason], "--file", "-", stdin=line).returncode == 0
    made = [name for name in sorted(landed(connection)) if name.startswith("loader-")]
    assert len(set(made)) == 2
    connection.execute("truncate raw.events")
    connection.execute("update raw.quarantine set resolved_at = null, resolution = null where resolution = 'replaced'")
    for reason in ("invalid_json", "no_user_anon_id"):
        assert run_here("quarantine", "retry", numbers[reason], "--file", "-", stdin=line).returncode == 0
    assert sorted(landed(connection)) == made


def keep_body(connection: psycopg.Connection, entrance: str, body: bytes) -> str:
    """Put a whole body in quarantine, as a collector did that could not read the body; return its number."""
    row = connection.execute(
        "insert into raw.quarantine (source, entrance, reason, detail, payload, received_at)"
        " values ('iterable', %s, 'bad_request', 'd', %s, '2026-01-02 03:04:05Z') returning id",
        (entrance, body),
    ).fetchone()
    assert row
    return str(row[0])


def test_a_retried_batch_lands_except_its_refused_calls(run_here: Loader, connection: psycopg.Connection) -> None:
    """The command gives the number of landed calls. Each refused call is a separate message."""
    broken = GOOD.replace(b'"u"', b"7").replace(b"good", b"seven")
    cut = GOOD.replace(b'"good"', rb'"cut","properties":{"x":"\ud83d"}')
    body = b'{"batch":[%b,%b,%b],"sentAt":"2026-01-02T03:04:04Z","writeKey":""}' % (GOOD, broken, cut)
    number = keep_body(connection, "tracking", body)
    done = run_here("quarantine", "retry", number)
    assert (done.returncode, done.stdout) == (3, "2 messages landed, 1 still refused\n")
    [line] = told(done)
    assert line.startswith(f"{number}: 2 of 3 calls landed. ")
    assert line.endswith(" First refusal: id_not_string: userId is a number")
    assert sorted(landed(connection)) == ["cut", "good"]
    rows = connection.execute(
        "select reason, resolution, payload, received_at::text from raw.quarantine order by id"
    ).fetchall()
    assert [row[:2] for row in rows] == [("bad_request", "retried"), ("id_not_string", None)]
    assert b'"seven"' in rows[1][2]
    assert rows[0][3] == rows[1][3]
    received = connection.execute("select distinct received_at::text from raw.events").fetchall()
    assert received == [(rows[0][3],)]

    [row] = listed(run_here("quarantine", "list", "--json"))
    corrected = bytes(rows[1][2]).replace(b'"userId":7', b'"userId":"7"')
    done = run_here("quarantine", "retry", str(row["id"]), "--file", "-", stdin=corrected)
    assert (done.returncode, done.stdout, told(done)) == (0, "1 message landed, 0 still refused\n", [])
    assert sorted(landed(connection)) == ["cut", "good", "seven"]


@pytest.mark.parametrize(
    ("entrance", "form"),
    [("tracking", b'{"batch":[%b]}'), ("segment-webhook", b" [%b]\n"), ("iterable-webhook", b"[%b]")],
)
def test_a_corrected_body_lands(run_here: Loader, connection: psycopg.Connection, entrance: str, form: bytes) -> None:
    """A body with unbalanced brackets stays until it is corrected. Then all its calls land."""
    call = b'{"eventName":"emailOpen","email":"u@x"}' if entrance == "iterable-webhook" else GOOD
    calls = b",".join(
        call.replace(b'"good"', b'"m%d"' % number).replace(b"u@x", b"u%d@x" % number) for number in range(3)
    )
    number = keep_body(connection, entrance, (form % calls).replace(b"}", b"", 1))
    done = run_here("quarantine", "retry", number)
    assert (done.returncode, done.stdout) == (3, "0 messages landed, 1 still refused\n")
    done = run_here("quarantine", "retry", number, "--file", "-", stdin=form % calls)
    assert (done.returncode, done.stdout) == (0, "3 messages landed, 0 still refused\n")
    assert told(done) == [f"{number}: 3 of 3 calls landed"]
    assert len(sorted(landed(connection))) == 3
    assert resolutions(connection) == {"bad_request": "replaced"}


def test_a_body_without_a_type_lands_with_the_type_of_its_path(
    run_here: Loader, connection: psycopg.Connection
) -> None:
    """The entrance records the type."""
    number = keep_body(connection, "tracking:identify", b"userId=u")
    done = run_here("quarantine", "retry", number, "--file", "-", stdin=b'\xef\xbb\xbf{"userId":"u","traits":{}}\r\n')
    assert (done.returncode, done.stdout) == (0, "1 message landed, 0 still refused\n")
    assert connection.execute("select payload ->> 'type' from raw.events").fetchall() == [("identify",)]


def test_a_batch_without_an_acceptable_call_stays_unchanged(run_here: Loader, connection: psycopg.Connection) -> None:
    """This holds if the parser refuses its calls and if the database does."""
    for calls, why in (
        ([NOBODY, NOBODY], "no_user_anon_id: neither userId nor anonymousId"),
        ([TOO_LARGE, TOO_LARGE], "the database refuses the message as before"),
    ):
        number = keep_body(connection, "tracking", b'{"batch":[%b]}' % b",".join(calls))
        done = run_here("quarantine", "retry", number)
        assert (done.returncode, done.stdout) == (3, "0 messages landed, 2 still refused\n")
        assert told(done) == [f"{number}: 0 of 2 calls landed. The message stays as it is. First refusal: {why}"]
    assert sorted(landed(connection)) == []
    assert len(listed(run_here("quarantine", "list", "--json"))) == 2


def test_a_landed_message_does_not_land_again(
    run_here: Loader, connection: psycopg.Connection, numbers: dict[str, str]
) -> None:
    """A retry of a landed message is wrong use, and no other named message lands. The exit code is 2."""
    connection.execute("update raw.quarantine set payload = %s where reason = 'invalid_json'", (GOOD,))
    number = numbers["nul_character"]
    done = run_here("quarantine", "retry", numbers["invalid_json"], number)
    assert (done.returncode, told(done)) == (2, [f"Error: Message {number} has landed already (repaired)."])
    assert sorted(landed(connection)) == ["good", "repaired"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "999"], "There is no message 999 in quarantine."),
        (["retry", "999"], "There is no message 999 in quarantine."),
        (["retry"], "Select messages"),
        (["retry", "1", "--all"], "Select messages"),
        (["retry", "--all", "--file", "-"], "--file corrects one message"),
        (["retry", "1", "2", "--file", "-"], "--file corrects one message"),
        (["retry", "1", "--file", "/no/such/file"], "No such file or directory"),
        (["show", "one"], "not a valid integer"),
    ],
)
def test_wrong_use_gets_an_error(run_here: Loader, loaded: Path, arguments: list[str], message: str) -> None:
    """A meaningless number or option is the caller's mistake. The exit code is 2."""
    done = run_here("quarantine", *arguments, stdin=b"")
    assert done.returncode == 2
    assert message in told(done)[-1]
