"""Files that are loaded by mistake are stopped before they fill the quarantine, with advice."""

import gzip
import json
import re
from pathlib import Path

import psycopg
import pytest

from loader.files.load import CHECKED_LINES
from loader.settings import Settings
from tests.conftest import Loader, loader_command
from tests.support.served_tables import law

CALL = json.dumps({"type": "track", "event": "Email Opened", "userId": "u1", "messageId": "m"})


def count(connection: psycopg.Connection, table: str) -> int:
    """Return the number of rows of a table."""
    row = connection.execute(f"select count(*) from {table}").fetchone()
    assert row is not None
    return int(row[0])


def test_d3_a_mixed_folder_loads_its_events_and_lists_skipped_files(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Logs, tables and notes beside the events are skipped. A file that is named itself is loaded."""
    (tmp_path / "events.ndjson.gz").write_bytes(gzip.compress(CALL.encode()))
    for name in ("app.log", "contacts.csv", "README.md", "dump.sql.gz", "deep/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("not an event\n" * 10, encoding="utf-8")
    done = run_here("load", str(tmp_path))
    assert done.returncode == 0
    assert done.stdout.startswith("1 event landed")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Skipped 5 files in folders, because their names are not those of event files: ")
    assert line.endswith(" and 2 more")
    assert count(connection, "raw.quarantine") == 0


@pytest.mark.parametrize(
    "case",
    [
        (
            "x.csv",
            "email,campaignId,createdAt\na@b.c,1,2026-01-01\n",
            "CSV with the columns email, campaignId, createdAt",
            "--format iterable-export",
        ),
        ("x.ndjson", '{"email": "a@b.c", "campaignId": 1}\n', "an export of Iterable", "--format iterable-export"),
        ("x.ndjson", '{"eventName": "emailSend", "email": "a"}\n', "an export of Iterable", "--type emailSend"),
        ("x.json", f"[{CALL}]\n", "a JSON array", "jq -c '.[]'"),
        ("x.json", json.dumps(json.loads(CALL), indent=2), "JSON over several lines", "jq -c ."),
        ("package.json", '{"name": "x", "version": "1"}\n', "JSON objects of another kind, with name, version", ""),
        ("x.html", "<html>\n</html>\n", "XML or HTML", ""),
        ("app.log", "2026-01-01 started\n", "text", ""),
    ],
)
def test_d3_a_file_without_events_is_stopped_and_named(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path, case: tuple[str, str, str, str]
) -> None:
    """Nothing of the file lands or goes to quarantine. The message has the likely format and the way to load it."""
    name, lines, looks, option = case
    path = tmp_path / name
    path.write_text(lines, encoding="utf-8")
    stopped = run_here("load", str(path))
    assert stopped.returncode == 1
    error = stopped.stderr.splitlines()[0]
    assert error.startswith(f"Error: {path} was not loaded: ")
    assert looks in error
    assert option in error
    assert "--no-check loads the file" in error
    assert count(connection, "raw.quarantine") == count(connection, "raw.loads") == 0

    forced = run_here("load", "--no-check", str(path))
    assert forced.returncode == 3
    assert count(connection, "raw.quarantine") == len(lines.splitlines())


def test_d3_tracking_calls_loaded_as_an_export_get_an_error(run_here: Loader, tmp_path: Path) -> None:
    """The error names a format that was given by mistake."""
    path = tmp_path / "emailSend.ndjson"
    path.write_text(CALL.replace("userId", "anonymousId") + "\n", encoding="utf-8")
    stopped = run_here("load", "--format", "iterable-export", str(path))
    assert stopped.returncode == 1
    assert "The content looks like tracking calls, which are loaded without --format." in stopped.stderr


@pytest.mark.parametrize("before", [1, CHECKED_LINES - 1])
def test_d3_a_file_with_one_event_among_its_first_lines_loads(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path, before: int
) -> None:
    """A damaged beginning does not exclude the rest, if it is shorter than the checked lines."""
    path = tmp_path / "events.ndjson"
    path.write_text("{damaged\n" * before + f"{CALL}\n" + "{damaged\n", encoding="utf-8")
    done = run_here("load", str(path))
    assert done.returncode == 3
    assert count(connection, "raw.events") == 1
    assert count(connection, "raw.quarantine") == before + 1


def test_d3_an_event_behind_the_checked_lines_needs_the_no_check_option(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """With the option, and in later loads, the file is loaded like any other."""
    path = tmp_path / "events.ndjson"
    path.write_text("{damaged\n" * CHECKED_LINES + f"{CALL}\n", encoding="utf-8")
    stopped = run_here("load", str(path))
    assert stopped.returncode == 1
    assert "none of its first 1,000 lines is an event" in stopped.stderr
    assert run_here("load", "--no-check", str(path)).returncode == 3
    assert (count(connection, "raw.events"), count(connection, "raw.quarantine")) == (1, CHECKED_LINES)
    with path.open("a", encoding="utf-8") as file:
        file.write("{damaged too\n")
    assert run_here("load", str(path)).returncode == 3
    assert count(connection, "raw.quarantine") == CHECKED_LINES + 1


def test_d3_a_stream_without_events_is_stopped_too(module_settings: Settings, connection: psycopg.Connection) -> None:
    """Standard input is checked like a file. Blank lines do not count."""
    run = loader_command(module_settings)
    stopped = run("load", "-", stdin=b"a,b\n1,2\n")
    assert stopped.returncode == 1
    assert "The content looks like CSV" in stopped.stderr
    assert run("load", "-", stdin=b"\n\n").returncode == 0
    assert count(connection, "raw.quarantine") == 0


@pytest.fixture
def refused(run_here: Loader, tmp_path: Path) -> Path:
    """Return a folder with two loaded files, each with an event and refused messages."""
    for name, lines in (("a.ndjson", ["{broken", "{broken too", '{"type": "track"}']), ("b.ndjson", ["{broken"])):
        (tmp_path / name).write_text("\n".join([CALL, *lines]) + "\n", encoding="utf-8")
        assert run_here("load", str(tmp_path / name)).returncode == 3
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["--load", "1"], 3),
        (["--load", "2"], 1),
        (["--reason", "invalid_json"], 3),
        (["--path", "a.ndjson"], 3),
        (["--path", ""], 4),
        (["--load", "1", "--reason", "invalid_json"], 2),
        (["--reason", "no_such_reason"], 0),
    ],
)
def test_d3_discarded_messages_stay_counted(
    run_here: Loader, connection: psycopg.Connection, refused: Path, arguments: list[str], gone: int
) -> None:
    """The messages and their bytes are gone. The law holds, and raw.discarded has their number and bytes."""
    if arguments[0] == "--path":
        arguments = ["--path", str(refused / arguments[1]) if arguments[1] else f"{refused}/"]
    assert law(connection)["quarantined"] == 4
    done = run_here("quarantine", "discard", "--yes", *arguments)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{gone} message{'' if gone == 1 else 's'} of ")
    numbers = law(connection)
    assert (numbers["accepted"], numbers["quarantined"], numbers["discarded"]) == (6, 4 - gone, gone)
    assert count(connection, "raw.quarantine") == 4 - gone
    kept = connection.execute(
        "select coalesce(sum(messages), 0), coalesce(sum(bytes), 0) from raw.discarded"
    ).fetchone()
    assert kept is not None
    assert kept[0] == gone
    assert f" of {int(kept[1]):,} byte" in done.stdout
    status = json.loads(run_here("status", "--json").stdout)["conservation"][0]
    assert (status["discarded"], status["holds"]) == (gone, True)
    assert f"{gone}  discarded from quarantine" in run_here("status").stdout


def test_d3_a_file_that_was_loaded_again_keeps_its_loads_apart(
    run_here: Loader, connection: psycopg.Connection, refused: Path
) -> None:
    """A file was replaced by another with the same name. Each load has its own messages."""
    (refused / "a.ndjson").write_text(f"{CALL} \n" + "{other\n" * 5, encoding="utf-8")
    assert run_here("load", str(refused / "a.ndjson")).returncode == 3
    assert run_here("quarantine", "discard", "--yes", "--load", "1").stdout.startswith("3 messages")
    assert run_here("quarantine", "discard", "--yes", "--load", "3").stdout.startswith("5 messages")
    assert law(connection)["discarded"] == 8


def test_d3_a_discard_needs_a_confirmation(
    run_here: Loader, connection: psycopg.Connection, refused: Path, module_settings: Settings
) -> None:
    """Without --yes, a script is refused and a person is asked. Landed messages are never discarded."""
    unconfirmed = run_here("quarantine", "discard", "--load", "1", stdin=b"")
    assert unconfirmed.returncode == 2
    assert "3 messages would be deleted for good. Confirm the deletion with --yes." in unconfirmed.stderr
    assert run_here("quarantine", "discard").returncode == 2
    unknown = run_here("quarantine", "discard", "--yes", "--load", "99")
    assert (unknown.returncode, "There is no load 99" in unknown.stderr) == (2, True)
    assert law(connection)["quarantined"] == 4


def test_d3_a_load_of_refusals_names_the_way_to_discard_them(run_here: Loader, tmp_path: Path) -> None:
    """The command works as it is written."""
    path = tmp_path / "events.ndjson"
    path.write_text(f"{CALL}\n" + "{broken\n" * 5, encoding="utf-8")
    told = run_here("load", str(path)).stderr
    advised = re.search(r"`loader (quarantine discard .*?)`", told)
    assert advised
    assert run_here(*advised[1].split(), "--yes").stdout.startswith("5 messages of ")
