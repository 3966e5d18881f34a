"""Text of events and names from outside reach a terminal or a log as visible characters only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from loader.runtime.terminal import escape_controls
from loader.settings import Settings
from tests.conftest import Loader
from tests.support.terminals import run_on_terminal

# A title, a cleared screen by C0 and by C1, colours, a line that overwrites itself, reversed and hidden text.
HOSTILE = "x\x1b]0;owned\x07\x1b[2J\x9b2J\x1b[31m\rz\u202egnp\u2066\u200b\u2028\x7f"


def event(message_id: str, **fields: object) -> str:
    """Return a line with hostile text in every possible place."""
    call = {"type": "track", "event": f"Order {HOSTILE}", "messageId": message_id, "userId": HOSTILE}
    return json.dumps(call | {"properties": {f"a{HOSTILE}": HOSTILE, "id": HOSTILE}} | fields)


@pytest.fixture
def hostile(served_loader: Loader, served_settings: Settings, tmp_path: Path) -> Path:
    """Return a folder with a file of a hostile name and content, which has been loaded and transformed."""
    path = tmp_path / f"events{HOSTILE}.ndjson"
    lines = [event(f"m{HOSTILE}"), event("second", event="Email Opened"), event("third", userId={HOSTILE: 1})]
    path.write_text("\n".join([*lines, f'{{"event": {HOSTILE}']) + "\n", encoding="utf-8")
    assert served_loader("load", str(path)).returncode == 3
    for _ in range(2):
        assert served_loader("transform", "--select", "email_opened found_collections tracks").returncode == 0
    with psycopg.connect(served_settings.database_url) as connection:
        connection.execute(
            "update raw.transforms set error = %s where started_at = (select max(started_at) from raw.transforms)",
            (HOSTILE,),
        )
        connection.execute(
            "insert into raw.schedules (id, host, process_id, every, state, last_error)"
            " values ('s', %s, 1, '5 s', 'idle', %s)",
            (HOSTILE, HOSTILE),
        )
    return path


def commands(path: Path) -> list[tuple[str, ...]]:
    """Return every command that shows text from outside."""
    return [
        ("status",),
        ("status", "--json"),
        ("schema", "--json"),
        ("schema", "email_opened"),
        ("schema", HOSTILE),
        ("sql", f"select payload, message_id as \"{HOSTILE}\", payload ->> 'userId' from raw.events"),
        ("sql", "--format", "json", "select payload, message_id from raw.events"),
        ("sql", f"select {HOSTILE}"),
        ("quarantine", "list"),
        ("quarantine", "list", "--json"),
        ("quarantine", "retry", "--all"),
        ("quarantine", "retry", HOSTILE),
        ("load", str(path)),
        ("load", str(path.with_name(f"no{HOSTILE}"))),
        ("load", "--format", "iterable-export", str(path)),
        ("load", "--source", HOSTILE, str(path)),
        ("scaffold", f"Unknown {HOSTILE}"),
        ("scaffold", f"Order {HOSTILE}", "--folder", str(path.with_name(f"models{HOSTILE}"))),
        ("transform", "--select", HOSTILE),
        ("source", "add", f"Shop {HOSTILE}", "--json"),
        ("source", "add", f"Other {HOSTILE}"),
        ("source", "list"),
        ("source", "list", "--json"),
        ("key", "add", f"Shop {HOSTILE}", "--label", HOSTILE),
        ("key", "list"),
        ("key", "list", "--json"),
        ("key", "list", "--source", HOSTILE),
        ("rescan",),
        (HOSTILE,),
    ]


def unseen(text: str) -> set[str]:
    """Return the characters of a text that control a terminal or are invisible."""
    return {character for character in text if escape_controls(character, keep="\n") != character}


def test_c4_no_command_prints_a_control_character(hostile: Path, served_loader: Loader) -> None:
    """Names of events, properties, values, ids, paths, sources, labels and errors are visible text."""
    told = []
    for arguments in commands(hostile):
        done = served_loader(*arguments)
        assert unseen(done.stdout + done.stderr) == set(), arguments
        told.append(done.stdout + done.stderr)
    assert sum("owned" in text for text in told) > len(told) / 2
    shown = served_loader("quarantine", "show", "1")
    assert unseen(shown.stderr) == set()


def test_c4_no_command_sends_a_control_character_to_a_terminal(hostile: Path, served_settings: Settings) -> None:
    """A terminal also shows a message in quarantine as visible text."""
    for arguments in (("status",), ("sql", "select payload from raw.events"), ("quarantine", "list")):
        assert unseen(run_on_terminal(served_settings, *arguments)[1]) == set()
    code, shown = run_on_terminal(served_settings, "quarantine", "show", "2")
    assert code == 0
    assert r"x\x1b]0;owned\x07" in shown
    assert unseen(shown) == set()


def test_c4_data_for_programs_is_exact(hostile: Path, served_settings: Settings, served_loader: Loader) -> None:
    """CSV, JSON and a message in quarantine have the original characters."""
    query = "select payload ->> 'userId' as who from raw.events order by seq limit 1"
    assert json.loads(served_loader("sql", "--format", "json", query).stdout) == [{"who": HOSTILE}]
    with psycopg.connect(served_settings.database_url) as connection:
        row = connection.execute("select id, payload from raw.quarantine order by byte_offset desc limit 1").fetchone()
    assert row is not None
    # These run in separate processes with pipes, because the stream of a test is not a file.
    for arguments, expected in (
        (("sql", "--format", "csv", query), f'who\n"{HOSTILE}"\n'.encode()),
        (("quarantine", "show", str(row[0])), row[1] + b"\n"),
    ):
        assert piped(served_settings, *arguments) == expected


def piped(settings: Settings, *arguments: str) -> bytes:
    """Return the output that a command writes to a pipe."""
    variables = os.environ | {"DATABASE_URL": settings.database_url, "LOADER_HOME": str(settings.home)}
    command = [sys.executable, "-m", "loader", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, check=True).stdout
