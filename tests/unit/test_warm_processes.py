"""Programs that tests start by a fork behave like programs that start as usual."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import warm_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")

PROGRAM = """
import json, os, signal, sys
handlers = [signal.getsignal(number) == usual for number, usual in [
    (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)]]
assert sys.orig_argv[1] == "-c" and sys.orig_argv[3:] == sys.argv[1:]
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("MOOD"), os.getppid(), handlers, sys.stdin.read()]))
sys.stderr.write("told")
sys.exit(7)
"""
WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"
SEND = "import os, sys; os.write(int(sys.argv[1]), b'sent')"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of this module start by a fork."""
    monkeypatch.setattr(warm_processes, "programs", {PROGRAM, WAIT, SEND})


def test_a_program_gets_its_arguments_folder_environment_and_input(tmp_path: Path) -> None:
    """Its output, exit code and parent are those of a program that starts as usual."""
    results = []
    for start in (subprocess.Popen, warm_processes.OrdinaryPopen):
        command = [sys.executable, "-c", PROGRAM, "one", "two"]
        environment = os.environ | {"MOOD": "good"}
        with start(command, cwd=tmp_path, env=environment, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
            results.append((process.communicate("given"), process.returncode))
    warm, cold = results
    assert warm == cold
    assert json.loads(warm[0][0]) == [["one", "two"], str(tmp_path), "good", os.getpid(), [True, True], "given"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_program(number: signal.Signals) -> None:
    """The starter waits for the end, and learns the signal."""
    with subprocess.Popen([sys.executable, "-c", WAIT], stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(60) == -number


def test_no_signal_is_lost_before_a_program_begins() -> None:
    """A signal that follows the start at once ends the program."""
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", WAIT], stdin=-1, stdout=-1) as process:
            process.terminate()
            assert process.wait(60) == -signal.SIGTERM


def test_a_program_shows_its_command_line() -> None:
    """Other tests find the processes of the product by their command lines."""
    command = [sys.executable, "-c", WAIT]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert psutil.Process(process.pid).cmdline()[:3] == command


def test_a_program_inherits_the_descriptors_that_are_passed_on() -> None:
    """A descriptor has the same number in both processes."""
    reader, writer = os.pipe()
    subprocess.run([sys.executable, "-c", SEND, str(writer)], check=True, pass_fds=[writer])
    assert os.read(reader, 64) == b"sent"
    os.close(reader)
    os.close(writer)


def test_a_program_has_a_session_or_a_group_of_its_own() -> None:
    """The options of the starter decide."""
    for option in ({"start_new_session": True}, {"process_group": 0}):
        with subprocess.Popen([sys.executable, "-c", WAIT], stdin=-1, stdout=-1, **option) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert os.getpgid(process.pid) == process.pid
            assert (os.getsid(process.pid) == process.pid) == ("start_new_session" in option)


def test_unknown_programs_start_as_usual() -> None:
    """An unknown program starts as usual, and so does a program with another setting of Python."""
    code = "import sys; print('dbt' in sys.modules)"
    for environment in (None, os.environ | {"PYTHONUTF8": "1"}):
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
        assert done.stdout == b"False\n"
