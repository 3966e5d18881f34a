"""Bad input: each bad line or file is reported in one line, and its neighbours land.

Most commands run in this process, which saves time and lets no exception pass.
"""

import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zstandard

from loader.postgres.embedded import EmbeddedServer
from loader.settings import Settings
from tests.conftest import Loader, loader_command, open_settings
from tests.support.factories import call_line, landed

AS_ROOT = os.geteuid() == 0

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def run(module_settings: Settings, connection: psycopg.Connection) -> Loader:
    """Return the command line on that database."""
    return loader_command(module_settings)


def with_value(value: bytes) -> bytes:
    """Return a valid call with the id `odd` and a property `x` of exactly these bytes."""
    return call_line("odd")[:-1] + b',"properties":{"x":' + value + b"}}"


BEFORE, AFTER = call_line("before"), call_line("after")


def write(path: Path, line: bytes) -> Path:
    """Write a file in which a line has good neighbours."""
    path.write_bytes(b"\n".join([BEFORE, line, AFTER, b""]))
    return path


def quarantined(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Return reason, path, offset and bytes of all messages in quarantine."""
    return connection.execute("select reason, path, byte_offset, payload from raw.quarantine order by id").fetchall()


PROGRESS = re.compile(r"[\d,]+ events? landed, .*%")


def told(done: Done) -> list[str]:
    """Return the lines that a command wrote to stderr, and check that they contain no traceback.

    A load that takes long on a slow machine also writes its progress there.
    """
    assert "Traceback" not in done.stderr + done.stdout
    return [line for line in done.stderr.splitlines() if not PROGRESS.match(line)]


# Lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(b'{"type": "track", oops}', "invalid_json", id="broken JSON"),
        pytest.param(b'{"type":"track","event":"Email\xff"}', "invalid_utf8", id="invalid UTF-8"),
        pytest.param(b"\xef\xbb\xbf" + call_line("odd"), "invalid_json", id="a byte order mark between lines"),
        pytest.param(with_value(b"[" * 10_000 + b"]" * 10_000), "too_deep", id="nested 10,000 deep"),
        pytest.param(with_value(b"1e200000"), "refused_by_database", id="a number beyond the database"),
        pytest.param(b"[" + call_line("odd") + b"]", "not_object", id="an array"),
        pytest.param(call_line("odd", userId=None), "no_user_anon_id", id="no user"),
        pytest.param(with_value(b'"a\x00b"'), "invalid_json", id="a bare NUL"),
        pytest.param(with_value(b'"' + b"x" * 17_000_000 + b'"'), "line_too_long", id="17 MB"),
    ],
)
def test_a_bad_line_goes_to_quarantine(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path, line: bytes, reason: str
) -> None:
    """The line is kept with its reason, file, offset and bytes. Its neighbours land, and the exit code is 3."""
    path = write(tmp_path / "events.ndjson", line)
    done = run_here("load", str(path))
    assert done.returncode == 3
    assert told(done) == ["`loader quarantine list` shows the refused messages and the reasons."]
    assert "2 events landed" in done.stdout
    assert f"1 message in quarantine: {reason}" in done.stdout
    assert sorted(landed(connection)) == ["after", "before"]
    ((why, where, offset, kept),) = quarantined(connection)
    assert (why, where, offset) == (reason, str(path), len(BEFORE) + 1)
    assert kept == (line if reason != "line_too_long" else line[:100_000])


def test_a_truncated_last_line_goes_to_quarantine(run: Loader, connection: psycopg.Connection, tmp_path: Path) -> None:
    """The lines before it land, and its bytes are kept."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(BEFORE + b"\n" + AFTER + b"\n" + call_line("odd")[:40])
    done = run("load", str(path))
    assert (done.returncode, len(told(done))) == (3, 1)
    assert landed(connection) == ["before", "after"]
    assert quarantined(connection) == [
        ("truncated_line", str(path), len(BEFORE) + len(AFTER) + 2, call_line("odd")[:40])
    ]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param((rb'"a\u0000b"', "a\ufffdb", "nul_character"), id="NUL"),
        pytest.param((rb'"\ud83d \ude00"', "\ufffd \ufffd", "lone_surrogate"), id="lone surrogates"),
        pytest.param(
            (rb'"C:\\ud83d\ude00"', "C:\\ud83d\ufffd", "lone_surrogate"), id="half of a pair that looks whole"
        ),
    ],
)
def test_characters_that_cannot_be_stored_are_replaced(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path, case: tuple[bytes, str, str]
) -> None:
    """The event lands with U+FFFD. Its original bytes are in quarantine, as repaired."""
    value, stored, reason = case
    path = write(tmp_path / "events.ndjson", with_value(value))
    done = run_here("load", str(path))
    assert (done.returncode, len(told(done))) == (3, 1)
    assert "1 of these landed with replaced characters" in done.stdout
    assert landed(connection) == ["before", "odd", "after"]
    query = "select payload -> 'properties' ->> 'x' from raw.events where message_id = 'odd'"
    assert connection.execute(query).fetchall() == [(stored,)]
    assert quarantined(connection) == [(reason, str(path), len(BEFORE) + 1, with_value(value))]
    assert connection.execute("select resolution from raw.quarantine").fetchall() == [("repaired",)]


def test_odd_lines_land_as_they_are(run_here: Loader, connection: psycopg.Connection, tmp_path: Path) -> None:
    """Long numbers stay exact, the last of two keys counts, and a line may have 10 MB."""
    lines = {
        "large": with_value(b"1e400"),
        "exact": with_value(str(2**70).encode()),
        "twice": with_value(b'1,"x":2'),
        "long": with_value(b'"' + b"x" * 10_000_000 + b'"'),
        "pair": with_value(rb'"\ud83d\ude00 \\u0000"'),
        "spaces": b" " + with_value(b"[1,\t2 ]") + b"\t\r",
    }
    named = [line.replace(b'"odd"', f'"{name}"'.encode()) for name, line in lines.items()]
    (tmp_path / "events.ndjson").write_bytes(b"\xef\xbb\xbf" + b"\n\n \r\n".join([BEFORE, *named, AFTER]) + b"\n\n")
    done = run_here("load", str(tmp_path / "events.ndjson"))
    assert (done.returncode, told(done)) == (0, [])
    assert sorted(landed(connection)) == sorted(["before", *lines, "after"])
    assert quarantined(connection) == []
    values = dict(connection.execute("select message_id, payload -> 'properties' ->> 'x' from raw.events").fetchall())
    assert values["large"] == "1" + "0" * 400
    assert values["exact"] == "1180591620717411303424"
    assert values["twice"] == "2"
    assert len(values["long"]) == 10_000_000
    assert values["pair"] == "😀 \\u0000"
    assert values["spaces"] == "[1, 2]"


# Files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"\x7fELF\x02\x01\x01\0\0\0", "is a binary file, not lines of JSON", id="binary"),
        pytest.param(b"PK\x03\x04\x14\0\0\0", "is a zip archive, not lines of JSON", id="zip"),
        pytest.param("{}".encode("utf-16"), "is UTF-16 text (convert the file to UTF-8)", id="UTF-16"),
        pytest.param(b"\x1f\x8b\x08\0\xff\xff\xff", "the compressed data is damaged at its beginning", id="no gzip"),
        pytest.param(
            gzip.compress(call_line("kept") + b"\n" + call_line("lost") + b"\n")[:-12],
            "is cut short or damaged",
            id="half a gzip",
        ),
        pytest.param(None, "No such file or directory", id="missing"),
    ],
)
def test_a_bad_file_is_named_and_good_files_land(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path, data: bytes | None, message: str
) -> None:
    """One line names a file that cannot be read completely, and the exit code is 1. The other file lands."""
    bad, good = tmp_path / "bad.ndjson", write(tmp_path / "good.ndjson", call_line("odd"))
    if data is not None:
        bad.write_bytes(data)
    done = run_here("load", str(bad), str(good))
    assert done.returncode == 1
    error, summary = told(done)
    assert error.startswith("Error: ")
    assert str(bad) in error
    assert message in error
    assert summary == "1 file of 2 could not be loaded completely."
    assert [name for name in landed(connection) if name != "kept"] == ["before", "odd", "after"]
    assert quarantined(connection) == []


def test_an_empty_file_is_no_error(run_here: Loader, connection: psycopg.Connection, tmp_path: Path) -> None:
    """An hour without events is no error."""
    (tmp_path / "empty").touch()
    done = run_here("load", str(tmp_path / "empty"))
    assert (done.returncode, told(done)) == (0, [])
    assert done.stdout.startswith("0 events landed")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "Error: The folder {home}/folder contains no files."),
        ("*.ndjson", "Error: No file matches {home}/*.ndjson."),
    ],
)
def test_a_load_without_files_gets_an_error(
    run_here: Loader, connection: psycopg.Connection, tmp_path: Path, path: str, message: str
) -> None:
    """A folder without events, or a pattern without a match, is not a success."""
    (tmp_path / "folder").mkdir()
    done = run_here("load", f"{tmp_path}/{path}")
    assert (done.returncode, told(done)) == (1, [message.format(home=tmp_path)])


def test_wrong_use_gets_an_error(run: Loader, tmp_path: Path) -> None:
    """A missing path or an unknown source is the caller's mistake. The exit code is 2."""
    path = write(tmp_path / "events.ndjson", call_line("odd"))
    assert run("load").returncode == 2
    done = run("load", "--source", "Nobody", str(path))
    assert (done.returncode, told(done)) == (2, ["Error: There is no source Nobody. The sources are: Iterable."])


def run_without_privileges(settings: Settings, *arguments: str) -> Done:
    """Run the command line as an ordinary user, because permissions do not restrict root."""
    capabilities = "=-dac_override,-dac_read_search"
    drop = ["setpriv", f"--inh-caps{capabilities}", f"--bounding-set{capabilities}"] if AS_ROOT else []
    try:
        subprocess.run([*drop, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root cannot give up its privileges here: setpriv does not work")
    environment = os.environ | {"DATABASE_URL": settings.database_url}
    command = [*drop, sys.executable, "-m", "loader", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_files_without_permission_are_named(
    module_settings: Settings, connection: psycopg.Connection, home: Path
) -> None:
    """A file, a folder and a file in a closed folder each fail with one line. A readable file lands."""
    with tempfile.TemporaryDirectory(dir=home) as name:
        folder = Path(name)
        folder.chmod(0o755)
        good, secret = write(folder / "good", call_line("odd")), write(folder / "secret", call_line("secret"))
        good.chmod(0o644)
        secret.chmod(0)
        closed = folder / "closed"
        closed.mkdir()
        write(closed / "inside", call_line("secret"))
        closed.chmod(0)

        done = run_without_privileges(module_settings, "load", str(secret), str(closed / "inside"), str(good))
        assert done.returncode == 1
        assert told(done) == [
            f"Error: Cannot read {secret}: Permission denied.",
            f"Error: Cannot read {closed}/inside: Permission denied.",
            "2 files of 3 could not be loaded completely.",
        ]
        assert landed(connection) == ["before", "odd", "after"]

        done = run_without_privileges(module_settings, "load", str(folder))
        assert (done.returncode, told(done)) == (
            1,
            [f"Error: Cannot read the folder {closed}: Permission denied. Nothing was loaded."],
        )
        closed.chmod(0o700)


@pytest.fixture
def small_disk(shared_home: Path) -> Iterator[Path]:
    """Return a disk of 40 MB that the server can enter."""
    folder = Path(tempfile.mkdtemp(dir=shared_home))
    command = ["mount", "-t", "tmpfs", "-o", "size=40m,mode=0755", "tmpfs", str(folder)]
    if not AS_ROOT or subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("making a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk_stops_the_load_until_there_is_room(
    server: str, shared_home: Path, raw_template: str, small_disk: Path, tmp_path: Path
) -> None:
    """One line names the disk, and no event is refused. With room the load continues."""
    owner = (shared_home / "embedded" / "data").stat()
    space = small_disk / "space"
    space.mkdir()
    os.chown(space, owner.st_uid, owner.st_gid)
    # The server compresses no such text.
    chance = random.Random(1)
    path = tmp_path / "events.ndjson"
    path.write_bytes(
        b"".join(call_line(f"{i}", properties={"x": chance.randbytes(3000).hex()}) + b"\n" for i in range(6000))
    )
    with EmbeddedServer(shared_home).connect("postgres", as_keeper=True) as maintenance:
        maintenance.execute("set statement_timeout = 0")
        maintenance.execute(f"create tablespace small location '{space}'")
        maintenance.execute(f'create database small template "{raw_template}" tablespace small owner loader')
        try:
            run = loader_command(open_settings(f"{server.rsplit('/', 1)[0]}/small", tmp_path))
            done = run("load", str(path))
            assert done.returncode == 1
            (error,) = told(done)
            assert error.startswith("Error: The database refused (53100): could not extend file")
            assert "The database's disk is full. Make room, then run the command again" in error

            subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
            done = run("load", str(path))
            assert (done.returncode, told(done)) == (0, [])
            done = run("sql", "--format", "csv", "select count(*), count(distinct message_id) from raw.events")
            assert done.stdout.splitlines()[1] == "6000,6000"
            done = run("sql", "--format", "csv", "select count(*) from raw.quarantine")
            assert done.stdout.splitlines()[1] == "0"
        finally:
            maintenance.execute("drop database small with (force)")
            maintenance.execute("drop tablespace small")


def test_a_role_without_rights_gets_an_error(
    connection: psycopg.Connection, module_settings: Settings, tmp_path: Path
) -> None:
    """The error of the database is one line, and no event is refused."""
    path = write(tmp_path / "events.ndjson", call_line("odd"))
    connection.execute("drop role if exists stranger; create role stranger login password 'secret'")
    where = module_settings.database_url.split("@")[1]
    stranger = loader_command(open_settings(f"postgresql://stranger:secret@{where}", module_settings.home))
    try:
        done = stranger("load", str(path))
        assert done.returncode == 1
        (error,) = told(done)
        assert error.startswith(
            "Error: The role stranger may not use the raw schema: permission denied for schema raw."
        )
        assert "Set DATABASE_URL to the URL of the loader's role." in error

        connection.execute(
            "grant usage on schema raw to stranger; grant select on all tables in schema raw to stranger"
        )
        done = stranger("load", str(path))
        assert done.returncode == 1
        (line,) = told(done)
        assert line.startswith("Error: ")
        assert "permission denied for" in line
    finally:
        connection.execute("drop owned by stranger; drop role stranger")
    assert quarantined(connection) == []


# Unusual input that is valid


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_standard_input_is_a_file_without_a_name(
    run: Loader, connection: psycopg.Connection, pack: Callable[[bytes], bytes]
) -> None:
    """Lines land from a pipe, compressed or not. Refused lines are kept with their offsets."""
    done = run("load", "-", stdin=pack(BEFORE + b"\n{broken\n" + AFTER))
    assert (done.returncode, len(told(done))) == (3, 1)
    assert landed(connection) == ["before", "after"]
    assert quarantined(connection) == [("invalid_json", "-", len(BEFORE) + 1, b"{broken")]


def test_a_closed_standard_input_gets_an_error(module_settings: Settings, connection: psycopg.Connection) -> None:
    """A scheduler may start a command without standard input. The error says so."""
    shell = f'exec "{sys.executable}" -m loader load - <&-'
    environment = os.environ | {"DATABASE_URL": module_settings.database_url}
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert told(done)[0].startswith("Error: Standard input is closed.")


def test_the_bytes_of_a_file_decide_its_format(run: Loader, connection: psycopg.Connection, tmp_path: Path) -> None:
    """Several files land together. The bytes decide the format, not the name."""
    (tmp_path / "plain.gz").write_bytes(call_line("plain") + b"\n")
    (tmp_path / "gzip.ndjson").write_bytes(gzip.compress(call_line("gzip") + b"\n"))
    (tmp_path / "zstd.jsonl").write_bytes(zstandard.compress(call_line("zstd") + b"\n"))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "more.gz").write_bytes(gzip.compress(call_line("more")))
    done = run("load", f"{tmp_path}/*.gz", str(tmp_path))
    assert (done.returncode, told(done)) == (0, [])
    assert done.stdout.startswith("4 events landed")
    assert sorted(landed(connection)) == ["gzip", "more", "plain", "zstd"]
    done = run("load", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "4 files loaded before and unchanged since\n")


def test_vector_74_raw_logs_keep_their_times(run_here: Loader, connection: psycopg.Connection, tmp_path: Path) -> None:
    """A line keeps its receivedAt and its timestamp. The load computes no time again."""
    times = {
        "receivedAt": "2015-12-12T19:11:01.266Z",
        "sentAt": "2015-12-12T19:11:01.169Z",
        "timestamp": "2015-12-12T19:11:01.249Z",
        "originalTimestamp": "2015-12-12T19:11:01.152Z",
    }
    fields = {
        "context": {"library": {"name": "x", "version": "1"}},
        "properties": {},
        "integrations": {},
        "projectId": "p",
    }
    lines = [
        call_line("m1", **times, **fields, version=2, channel="server"),
        call_line("m2", **times | {"receivedAt": "yesterday"}),
    ]
    path = tmp_path / "1449878400000.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    done = run_here("load", str(path))
    assert (done.returncode, told(done)) == (0, [])
    rows = connection.execute(
        "select message_id, received_at = '2015-12-12T19:11:01.266Z', received_at = landed_at, payload"
        " from raw.events order by seq"
    ).fetchall()
    assert rows == [("m1", True, False, json.loads(lines[0])), ("m2", False, True, json.loads(lines[1]))]


def test_a_command_with_a_closed_output_pipe_ends_without_an_error(
    module_settings: Settings, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """`loader load … | true` causes no traceback."""
    path = write(tmp_path / "events.ndjson", call_line("odd"))
    environment = os.environ | {"DATABASE_URL": module_settings.database_url}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "loader", "load", str(path)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writer)
    done.stdout = ""
    assert told(done) == []
    assert landed(connection) == ["before", "odd", "after"]
