"""Loading files: each line lands once, whatever the file's name, however it grows, and after every kill."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import zstandard

from loader.errors import LoaderError
from loader.files import load as loading
from loader.files.chunks import Chunk, LineReader
from loader.files.load import FileLoaded, Load, Progress
from loader.files.worker import Work
from loader.files.worker_pool import Workers
from loader.postgres.database import Database
from tests.support import warm_processes
from tests.support.factories import landed

# Many chunks of a small file.
CHUNK_BYTES = 20_000

# The command line with small chunks.
LOADER = f"""
from loader.files.chunks import LineReader
LineReader.__init__.__kwdefaults__["chunk_bytes"] = {CHUNK_BYTES}
from loader.cli.app import main
main()
"""
warm_processes.programs.add(LOADER)


def make_line(message_id: object, *, bytes_more: int = 0) -> bytes:
    """Return an event as a line without its newline."""
    call = {"type": "track", "event": "Email Opened", "userId": "u", "messageId": f"{message_id}"}
    return json.dumps(call | {"properties": {"x": "x" * bytes_more}}).encode()


def make_lines(count: int, start: int = 0, *, bytes_more: int = 0) -> bytes:
    """Return events as lines."""
    return b"".join(make_line(i, bytes_more=bytes_more) + b"\n" for i in range(start, start + count))


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """Return a connection to look at the database and to load."""
    with database.connect(autocommit=True) as opened:
        yield opened


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the chunks small, so that files of a few hundred lines have many chunks."""
    monkeypatch.setitem(LineReader.__init__.__kwdefaults__, "chunk_bytes", CHUNK_BYTES)


Loads = Callable[..., list[FileLoaded]]


@pytest.fixture
def load(database: Database, connection: psycopg.Connection) -> Loads:
    """Load files into the source Iterable."""

    def run(*paths: Path, workers: int = 1, report: Callable[[Progress], None] = lambda _: None) -> list[FileLoaded]:
        loads = Load(database.url, connection, "iterable", workers=workers, lock_wait=database.lock_wait, report=report)
        return list(loads.run([str(path) for path in paths]))

    return run


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Return a file of ten events."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(make_lines(10))
    return path


def ids(count: int) -> Counter[str]:
    """Return the first ids, each once."""
    return Counter(str(i) for i in range(count))


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the worker processes of a loader."""
    return [child for child in psutil.Process(pid).children() if "loader.files.worker" in " ".join(child.cmdline())]


def outcomes(loads: list[FileLoaded]) -> list[str]:
    """Return the outcome of each file."""
    return [loaded.outcome for loaded in loads]


def everything(connection: psycopg.Connection) -> list[object]:
    """Return everything that a load writes."""
    return [
        connection.execute(f"select * from raw.{table} order by 1, 2").fetchall()
        for table in ("events", "loads", "quarantine")
    ]


# The same file


@pytest.mark.parametrize("tail", [b"", make_line(10), b"{broken", b"{broken\n", b"\n"])
def test_a_file_that_was_loaded_changes_nothing(
    connection: psycopg.Connection, load: Loads, events: Path, tail: bytes
) -> None:
    """A second load leaves every table unchanged, however the last line of the file ends."""
    events.write_bytes(events.read_bytes() + tail)
    assert outcomes(load(events)) == ["loaded"]
    before = everything(connection)
    assert outcomes(load(events)) == ["unchanged"]
    assert everything(connection) == before
    assert Counter(landed(connection)) == ids(11 if tail.startswith(b'{"') else 10)


def test_a_copy_is_the_same_file(connection: psycopg.Connection, load: Loads, tmp_path: Path) -> None:
    """A file with another name or compression is the same file, whichever is loaded first."""
    lines = make_lines(10)
    shapes = {
        "plain": lines,
        "gzip": gzip.compress(lines),
        "members": b"".join(gzip.compress(line) for line in lines.splitlines(keepends=True)),
        "zstd": zstandard.compress(lines),
    }
    for first, data in shapes.items():
        connection.execute("truncate raw.events, raw.loads")
        (tmp_path / "first").write_bytes(data)
        assert outcomes(load(tmp_path / "first")) == ["loaded"]
        for copy, other in shapes.items():
            (tmp_path / copy).write_bytes(other)
            assert (first, copy, outcomes(load(tmp_path / copy))) == (first, copy, ["unchanged"])
        assert Counter(landed(connection)) == ids(10)


def test_an_empty_file_is_done_at_once(connection: psycopg.Connection, load: Loads, tmp_path: Path) -> None:
    """An empty file is loaded, and is unchanged the next time. When it grows, its lines are loaded."""
    path = tmp_path / "empty"
    path.touch()
    assert outcomes(load(path, path)) == ["loaded", "unchanged"]
    path.write_bytes(make_lines(3))
    assert load(path)[0].landed.rows == 3
    assert Counter(landed(connection)) == ids(3)


def test_each_source_has_its_own_files(
    database: Database, connection: psycopg.Connection, load: Loads, events: Path
) -> None:
    """A file that one source has loaded is new for another source."""
    load(events)
    other = Load(database.url, connection, "other", workers=1, lock_wait=database.lock_wait)
    assert outcomes(list(other.run([str(events)]))) == ["loaded"]
    assert connection.execute("select source, count(*) from raw.events group by 1 order by 1").fetchall() == [
        ("iterable", 10),
        ("other", 10),
    ]


@pytest.mark.parametrize("same_length", [True, False])
def test_files_with_the_same_beginning_are_different_files(
    connection: psycopg.Connection, load: Loads, events: Path, tmp_path: Path, *, same_length: bool
) -> None:
    """All bytes distinguish files, not their names or first lines."""
    lines = events.read_bytes().splitlines(keepends=True)
    other = tmp_path / "other.ndjson"
    other.write_bytes(b"".join(lines[:9]) + (make_line("X") if same_length else make_line("another")) + b"\n")
    assert outcomes(load(events, other)) == ["loaded", "loaded"]
    assert sum(Counter(landed(connection)).values()) == 20
    assert outcomes(load(other, events)) == ["unchanged", "unchanged"]


# Files that grow


@pytest.mark.parametrize("first", [1, 2, 10])
def test_a_file_that_has_grown_is_continued(
    connection: psycopg.Connection, load: Loads, tmp_path: Path, first: int
) -> None:
    """Each load lands only the new lines, even of a file of a single short line."""
    path = tmp_path / "events.ndjson"
    for count in (first, first + 1, first + 1000):
        path.write_bytes(make_lines(count))
        (loaded,) = load(path)
        assert Counter(landed(connection)) == ids(count)
    assert (loaded.outcome, loaded.landed.rows) == ("continued", 999)
    assert outcomes(load(path)) == ["unchanged"]


def test_a_load_continues_in_a_compressed_copy_of_the_file(
    connection: psycopg.Connection, load: Loads, events: Path, tmp_path: Path
) -> None:
    """A log that was loaded while it grew continues after it is rotated and compressed."""
    load(events)
    rotated = tmp_path / "events.ndjson.1.gz"
    rotated.write_bytes(gzip.compress(make_lines(30)))
    (loaded,) = load(rotated)
    assert (loaded.outcome, loaded.landed.rows) == ("continued", 20)
    assert Counter(landed(connection)) == ids(30)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("lines", [0, 10])
def test_a_last_line_that_gets_its_newline_is_not_landed_again(
    connection: psycopg.Connection, load: Loads, tmp_path: Path, newline: bytes, lines: int
) -> None:
    """An event without its newline has landed. It is the same event when the file grows."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(make_lines(lines) + make_line(lines))
    load(path)
    assert Counter(landed(connection)) == ids(lines + 1)
    path.write_bytes(path.read_bytes() + newline)
    assert load(path)[0].landed.rows == 0
    path.write_bytes(path.read_bytes() + make_line(lines + 1) + newline)
    assert load(path)[0].landed.rows == 1
    assert Counter(landed(connection)) == ids(lines + 2)
    assert outcomes(load(path)) == ["unchanged"]


@pytest.mark.parametrize("lines", [1, 10])
def test_a_complete_line_replaces_its_quarantined_piece(
    connection: psycopg.Connection, load: Loads, tmp_path: Path, lines: int
) -> None:
    """A line that was loaded while it was written goes to quarantine. It lands and is resolved when it is complete."""
    path, last = tmp_path / "events.ndjson", make_line(lines, bytes_more=300)
    path.write_bytes(make_lines(lines) + last[:300])
    assert load(path)[0].landed.reasons == {"truncated_line": 1}
    path.write_bytes(make_lines(lines) + last + b"\n{broken\n")
    assert load(path)[0].landed.reasons == {"invalid_json": 1}
    assert Counter(landed(connection)) == ids(lines + 1)
    assert connection.execute("select reason, payload, resolution from raw.quarantine order by id").fetchall() == [
        ("truncated_line", last[:300], "replaced"),
        ("invalid_json", b"{broken", None),
    ]


def test_a_load_that_cannot_record_its_end_lands_its_last_line_once(
    connection: psycopg.Connection, load: Loads, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line and the record of its landing are one transaction."""
    events.write_bytes(make_lines(10) + make_line(10))
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_FINISH", "select 1 / 0, %s, %s, %s")
        with pytest.raises(psycopg.Error):
            load(events)
    assert outcomes(load(events)) == ["unchanged"]
    assert Counter(landed(connection)) == ids(11)


def test_a_load_continues_when_a_damaged_file_is_whole(
    connection: psycopg.Connection, load: Loads, tmp_path: Path
) -> None:
    """The readable part of an incomplete download lands. The whole file adds the rest."""
    lines = b"".join(make_line(i, bytes_more=random.Random(i).randrange(200)) + b"\n" for i in range(2000))
    packed = gzip.compress(lines, compresslevel=1)
    path = tmp_path / "events.gz"
    path.write_bytes(packed[: len(packed) // 2])
    (loaded,) = load(path)
    assert loaded.outcome == "failed"
    assert "cut short or damaged" in loaded.error
    assert 0 < loaded.landed.rows < 2000
    assert Counter(landed(connection)) == ids(loaded.landed.rows)
    assert outcomes(load(path)) == ["failed"]
    assert Counter(landed(connection)) == ids(loaded.landed.rows)

    path.write_bytes(packed)
    assert outcomes(load(path)) == ["continued"]
    assert Counter(landed(connection)) == ids(2000)
    assert connection.execute("select count(*) from raw.quarantine").fetchone() == (0,)


# Several files, several workers


def test_an_unreadable_file_does_not_stop_the_other_files(
    connection: psycopg.Connection, load: Loads, events: Path, tmp_path: Path
) -> None:
    """Each file is reported, and the readable files land."""
    binary, more = tmp_path / "binary", tmp_path / "more.ndjson"
    binary.write_bytes(bytes(100))
    more.write_bytes(make_lines(5, start=10))
    loads = load(tmp_path / "missing", events, binary, more)
    assert outcomes(loads) == ["failed", "loaded", "failed", "loaded"]
    assert "No such file" in loads[0].error
    assert "binary file" in loads[2].error
    assert Counter(landed(connection)) == ids(15)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_many_workers_land_the_same_rows_as_one_worker(
    connection: psycopg.Connection, load: Loads, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    """Chunks that land in parallel form the whole file, with the places of its bad lines. The bar reaches its end."""
    lines = make_lines(5000).splitlines(keepends=True)
    lines[2500:2500] = [b"{broken\n"]
    path, reports = tmp_path / "events", list[tuple[int, int]]()
    path.write_bytes(pack(b"".join(lines)))
    (loaded,) = load(path, workers=3, report=lambda p: reports.append((p.bytes_read, p.landed.rows)))
    assert (loaded.outcome, loaded.landed.rows, loaded.landed.quarantined) == ("loaded", 5000, 1)
    assert Counter(landed(connection)) == ids(5000)
    place = (str(path), sum(map(len, lines[:2500])), b"{broken")
    assert connection.execute("select path, byte_offset, payload from raw.quarantine").fetchall() == [place]
    whole = (len(b"".join(lines)),) * 2 + (5000, 1)
    assert connection.execute("select byte_offset, size, rows, quarantined from raw.loads").fetchall() == [whole]
    assert reports == sorted(reports)
    assert reports[-1] == (path.stat().st_size, 5000)
    assert len(reports) > 20
    assert workers_of(os.getpid()) == []


@pytest.mark.usefixtures("small_chunks")
def test_a_file_that_fails_in_a_worker_leaves_the_next_file_alone(
    connection: psycopg.Connection, load: Loads, tmp_path: Path
) -> None:
    """A file that is cut off during its load fails, and the next file is loaded completely."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(make_lines(5000, start=10_000))
    second.write_bytes(make_lines(1000))
    loads = load(first, second, workers=2, report=lambda p: os.truncate(first, 0) if p.landed.rows < 3000 else None)
    assert outcomes(loads) == ["failed", "loaded"]
    assert "shorter" in loads[0].error
    assert {i: n for i, n in Counter(landed(connection)).items() if int(i) < 10_000} == ids(1000)
    assert set(Counter(landed(connection)).values()) == {1}


def test_an_overlong_line_is_quarantined_by_its_beginning(
    connection: psycopg.Connection, load: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line beyond the limit is not an event. Its neighbours are, and the detail gives its length."""
    for name in ("chunk_bytes", "line_bytes"):
        monkeypatch.setitem(LineReader.__init__.__kwdefaults__, name, 200_000)
    path = tmp_path / "events"
    path.write_bytes(make_lines(1) + b'{"x":"' + b"x" * 300_000 + b'"}\n' + make_lines(1, start=1))
    for workers in (1, 2):
        connection.execute("truncate raw.events, raw.loads, raw.quarantine")
        assert load(path, workers=workers)[0].landed.reasons == {"line_too_long": 1}
        assert Counter(landed(connection)) == ids(2)
        ((payload, offset, detail),) = connection.execute("select payload, byte_offset, detail from raw.quarantine")
        assert (payload, offset) == (b'{"x":"' + b"x" * 99_994, len(make_lines(1)))
        assert detail.startswith("300009 bytes")


def test_a_pipe_is_read_once(connection: psycopg.Connection, load: Loads, tmp_path: Path) -> None:
    """A named pipe lands without a comparison with earlier loads, a second opening or a wait."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(make_lines(10)),))
    writer.start()
    assert outcomes(load(pipe)) == ["loaded"]
    writer.join()
    assert Counter(landed(connection)) == ids(10)


def test_names_of_any_bytes_are_loaded(connection: psycopg.Connection, load: Loads, tmp_path: Path) -> None:
    """A file whose name is not UTF-8 is loaded, and its name is shown with replacement characters."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.ndjson"))
    path.write_bytes(make_lines(2) + b"{broken\n")
    assert outcomes(load(path, path)) == ["loaded", "unchanged"]
    assert Counter(landed(connection)) == ids(2)
    paths = connection.execute("select path from raw.loads union all select path from raw.quarantine").fetchall()
    assert [row[0].rsplit("/")[-1] for row in paths] == ["caf\ufffd.ndjson"] * 2


# Interruptions


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    """Return a file of a hundred chunks, whose load takes some time."""
    path = tmp_path / "long.ndjson"
    path.write_bytes(make_lines(2000, bytes_more=900))
    return path


def start_loader(database: Database, path: Path, home: Path, *, workers: int = 2) -> subprocess.Popen[str]:
    """Start loading a file in a separate process, in small chunks."""
    return subprocess.Popen(
        [sys.executable, "-c", LOADER, "load", str(path)],
        env=os.environ | {"DATABASE_URL": database.url, "LOADER_HOME": str(home), "LOADER_WORKERS": str(workers)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def check_offset(connection: psycopg.Connection, path: Path) -> int:
    """Check that exactly the lines before the file's offset have landed; return their number."""
    offset, rows = connection.execute(
        "select coalesce((select max(byte_offset) from raw.loads), 0), (select count(*) from raw.events_email_opened)"
    ).fetchone() or (0, 0)
    assert path.read_bytes().count(b"\n", 0, offset) == rows
    return int(rows)


def assert_continues(database: Database, connection: psycopg.Connection, path: Path, home: Path) -> None:
    """Check that a stopped load has its rows up to its offset, and that the same command lands the rest once."""
    wait_for_silence(connection)
    check_offset(connection, path)
    assert finish(start_loader(database, path, home))[0] == 0
    assert Counter(landed(connection)) == ids(2000)


def watch_until(connection: psycopg.Connection, path: Path, process: "subprocess.Popen[str]", rows: int) -> None:
    """Wait until so many rows are committed; check meanwhile that rows and offset agree."""
    while check_offset(connection, path) < rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)  # the processes under test need the processor


def wait_for_silence(connection: psycopg.Connection) -> None:
    """Wait until the server has noticed the end of the other sessions' clients."""
    query = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    while connection.execute(query).fetchone() != (0,):
        pass


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait for a loader; return its exit code and messages."""
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out, err


def test_a_loader_that_is_killed_goes_on_where_it_was(
    database: Database, connection: psycopg.Connection, long_file: Path, home: Path
) -> None:
    """The load is killed repeatedly at random moments. In the end each event of the file has landed once."""
    chosen = random.Random(20240229)
    rows = 0
    for _ in range(2):
        process = start_loader(database, long_file, home)
        watch_until(connection, long_file, process, rows + chosen.randrange(1, 600))
        workers = workers_of(process.pid)
        process.kill()
        process.communicate()
        assert psutil.wait_procs(workers, timeout=30)[1] == []
        wait_for_silence(connection)
        rows = check_offset(connection, long_file)
    assert 0 < rows < 2000
    code, out, _ = finish(start_loader(database, long_file, home))
    assert (code, out.split()[0]) == (0, f"{2000 - rows:,}")
    assert Counter(landed(connection)) == ids(2000)
    assert connection.execute("select count(*) from raw.quarantine").fetchone() == (0,)


def test_a_killed_worker_stops_the_load_and_loses_no_event(
    database: Database, connection: psycopg.Connection, long_file: Path, home: Path
) -> None:
    """The load stops with one line, ends the other workers, and continues when it is run again."""
    process = start_loader(database, long_file, home)
    watch_until(connection, long_file, process, 500)
    victim, other = workers_of(process.pid)
    victim.kill()
    code, _, err = finish(process)
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith("Error: A worker process ended without a message")
    assert psutil.wait_procs([victim, other], timeout=30)[1] == []
    assert_continues(database, connection, long_file, home)


def test_an_ended_session_stops_the_load_and_loses_no_event(
    database: Database, connection: psycopg.Connection, long_file: Path, home: Path
) -> None:
    """When the server ends the sessions, the load stops with one line, and continues when it is run again."""
    process = start_loader(database, long_file, home)
    watch_until(connection, long_file, process, 500)
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    code, _, err = finish(process)
    errors = [line for line in err.splitlines() if line.startswith("Error:")]
    assert (code, len(errors)) == (1, 1)
    assert "continues after the last commit" in errors[0]
    assert_continues(database, connection, long_file, home)
    assert connection.execute("select count(*) from raw.quarantine").fetchone() == (0,)


def test_ctrl_c_stops_a_load_that_can_continue(
    database: Database, connection: psycopg.Connection, long_file: Path, home: Path
) -> None:
    """A terminal signals all processes of the group. The load prints one line and can continue."""
    process = start_loader(database, long_file, home)
    watch_until(connection, long_file, process, 500)
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err) == (130, "Stopped. Committed work is kept. Run the same command again to continue.\n")
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert_continues(database, connection, long_file, home)


def test_two_loaders_on_one_file_land_it_once(
    database: Database, connection: psycopg.Connection, long_file: Path, home: Path
) -> None:
    """The second loader waits for the first, reports the wait, and finds the file unchanged."""
    first = start_loader(database, long_file, home)
    watch_until(connection, long_file, first, 1)
    first.send_signal(signal.SIGSTOP)
    second = start_loader(database, long_file, home)
    assert second.stderr is not None
    said = second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    assert said.startswith(f"waiting for another loader, which loads {long_file}")
    assert finish(first)[0] == 0
    code, out, _ = finish(second)
    assert (code, out) == (0, "1 file loaded before and unchanged since\n")
    assert Counter(landed(connection)) == ids(2000)
    assert connection.execute("select count(*) from raw.loads").fetchone() == (1,)


def test_time_limits_of_the_database_do_not_end_a_wait_between_loaders(
    database: Database, connection: psycopg.Connection, long_file: Path, home: Path
) -> None:
    """The wait lasts until the other loader ends, so no time limit applies."""
    name = connection.info.dbname
    for setting in ("lock_timeout", "statement_timeout"):
        connection.execute(f"alter database {name} set {setting} = '500ms'".encode())
    first = start_loader(database, long_file, home)
    watch_until(connection, long_file, first, 1)
    first.send_signal(signal.SIGSTOP)
    second = start_loader(database, long_file, home)
    assert second.stderr is not None
    assert second.stderr.readline().startswith("waiting for another loader")
    time.sleep(1.5)
    assert second.poll() is None
    first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    code, out, _ = finish(second)
    assert (code, out) == (0, "1 file loaded before and unchanged since\n")


def test_no_rows_land_when_their_offset_has_moved(
    connection: psycopg.Connection, load: Loads, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and offset are one transaction. If the offset has moved, the rows do not land either."""
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_START", loading._START.replace("%s, %s, %s, %s, %s", "%s, %s, %s, %s + 1, %s"))
        with pytest.raises(LoaderError, match="Another loader is loading"):
            load(events)
    assert Counter(landed(connection)) == Counter()


def test_workers_that_wait_for_a_lock_can_be_stopped(
    database: Database, connection: psycopg.Connection, events: Path
) -> None:
    """A stop does not wait for a database that does not answer."""
    data = events.read_bytes()
    workers = Workers(database.url, 1, database.lock_wait)
    processes = [worker._process for worker in workers._workers]
    with database.connect() as other:
        other.execute("lock table raw.events in access exclusive mode")
        workers.submit(Work(0, "iterable", "file", str(events), Chunk(data, len(data), 0, len(data), b"")))
        waiting = (
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        while connection.execute(waiting).fetchone() != (1,):
            pass
        workers.close()
    assert [process.poll() for process in processes] == [-signal.SIGKILL]
    wait_for_silence(connection)
    assert Counter(landed(connection)) == Counter()


def test_workers_without_a_database_give_the_reason(database: Database, events: Path) -> None:
    """A worker that cannot connect, for example with too many connections, gives the reason."""
    workers = Workers(f"{database.url}_missing", 1, database.lock_wait)

    def hand_over() -> None:
        workers.submit(Work(0, "iterable", "file", str(events), Chunk(b"", 0, 0, 0, b"")))
        workers.commit_oldest()

    try:
        with pytest.raises(LoaderError, match=r'Cannot connect to the database at .*"test_\w+_missing" does not exist'):
            hand_over()
    finally:
        workers.close()
