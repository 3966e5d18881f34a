"""Child processes of Python: their pipe, their output and their end."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loader.runtime.child_process import ChildProcess, python_command

ECHO = "tests.unit.runtime.echo_process"


@pytest.fixture
def children() -> Iterator[list[ChildProcess]]:
    """Return a list of children, which are closed at the end."""
    started: list[ChildProcess] = []
    yield started
    for child in started:
        child.close()


def start(children: list[ChildProcess], *, is_silent: bool = False) -> ChildProcess:
    """Start a child that sends back each object."""
    child = ChildProcess(ECHO, "greeting", is_silent=is_silent)
    children.append(child)
    return child


def test_the_greeting_is_the_first_object_a_child_receives(children: list[ChildProcess]) -> None:
    """Objects arrive in the order of sending, in both directions."""
    child = start(children)
    child.pipe.send({"second": 2})
    assert [child.pipe.recv(), child.pipe.recv()] == ["greeting", {"second": 2}]


def test_closing_ends_a_child_that_does_not_read_its_pipe(children: list[ChildProcess]) -> None:
    """A stopped child stands for one that waits for a lock: its end must not depend on the pipe."""
    child = start(children)
    assert child._process is not None
    child._process.send_signal(signal.SIGSTOP)
    child.close()
    assert child._process.returncode == -signal.SIGKILL


def test_a_child_ends_when_its_parent_closes_the_pipe(children: list[ChildProcess]) -> None:
    """Only the parent holds its end of the pipe. So the pipe closes even when the parent is killed."""
    child = start(children)
    second = start(children)
    second.pipe.recv()
    child.pipe.close()
    assert child._process is not None
    assert child._process.wait(timeout=20) == 0


@pytest.mark.parametrize(("is_silent", "printed"), [(True, ""), (False, "printed by the child\n")])
def test_output_of_a_child_is_shown_unless_it_is_silent(
    children: list[ChildProcess], capfd: pytest.CaptureFixture[str], *, is_silent: bool, printed: str
) -> None:
    """A silent child prints nothing on the stdout of its parent."""
    child = start(children, is_silent=is_silent)
    child.pipe.send("print")
    assert [child.pipe.recv(), child.pipe.recv()] == ["greeting", "print"]
    assert capfd.readouterr().out == printed


def test_ctrl_c_of_the_parent_does_not_reach_a_child(children: list[ChildProcess]) -> None:
    """A terminal sends SIGINT to a process group, and the child has a group of its own."""
    child = start(children)
    assert child._process is not None
    assert os.getpgid(child._process.pid) == child._process.pid


def test_a_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing Python stands for a system without room for another process."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError):
        ChildProcess(ECHO, "greeting")


def test_a_file_in_the_current_folder_hides_no_module(tmp_path: Path) -> None:
    """A folder of files to load may hold a `json.py`. The child must not run that file."""
    (tmp_path / "json.py").write_text("raise SystemExit('wrong module')\n")
    (tmp_path / "loader.py").write_text("raise SystemExit('wrong package')\n")
    command = python_command("json", "1")
    command[command.index("-c") + 1] = "import json, sys; sys.path.append(sys.argv[1]); import loader.errors"
    finished = subprocess.run(command, check=False, capture_output=True, cwd=tmp_path, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
