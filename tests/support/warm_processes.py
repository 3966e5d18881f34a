"""Starts Python programs by a fork of a process that has imported their modules, which saves seconds of processor time.

`Popen` takes the place of `subprocess.Popen` in the tests' own processes. It starts the command line, dbt and the
children of the product this way, and every other program as usual. Such a process is a child of its starter, and shows
its usual command line.

The fork server has one thread. Its child forks again and ends, so the system gives the grandchild to the starter, which
adopts orphans for that moment. The keeper of an embedded database is not adopted, as usual.
"""

import atexit
import ctypes
import fcntl
import gc
import io
import logging
import os
import pickle
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]

# The program of `loader.runtime.child_process.python_command`.
_CHILD = re.compile(r"import sys; .*; from (?P<module>[\w.]+) import main; main\(\*sys.argv\[1:\]\)")
_CHILDREN = frozenset({"loader.transform.dbt_process", "loader.files.worker", "loader.postgres.embedded_keeper"})
# The command of `loader.postgres.embedded_cluster.start_detached`, before that of the process.
_DETACHED = ["/bin/sh", "-c", '"$@" &', "sh"]
_MODULES = frozenset({"loader", "dbt.cli.main"})
_IMPORTS = (
    "dbt.cli.main",
    "dbt.adapters.postgres",
    "uvicorn",
    "loader.cli.demo",
    "loader.cli.schedule",
    "loader.cli.serve",
    "loader.cli.transform",
    "loader.cli.up",
    "loader.collector.server",
    "loader.files.worker",
    "loader.postgres.embedded_keeper",
    "loader.transform.dbt_process",
)
# The commands that start such programs in turn.
_STARTERS = frozenset({"demo", "load", "schedule", "serve", "up"})

_READ_AT_START = ("LANG", "LC_", "PYTHON", "TZ")
# A process with such a variable imports these packages again, because its metrics are of another kind.
_SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_WITH_METRICS = ("loader", "prometheus_client")
_PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MESSAGE_BYTES = 1 << 18
_MOST_DESCRIPTORS = 64
OrdinaryPopen = subprocess.Popen

# Programs for `python -c` that tests write themselves.
programs: set[str] = set()

# The folder of the test run, where `tests.support.quick_dbt` keeps parsed projects.
samples: Path | None = None


@dataclass(frozen=True)
class _Start:
    """A program to start.

    Attributes:
        arguments: The arguments of Python, from `-m` or `-c` on.
        options: Python's options for warnings.
        folder: The folder to start in.
        environment: The environment of the process.
        numbers: The numbers of the open descriptors in the process.
        session: Start a session.
        group: The process group to join; None for that of the starter, 0 for a new one.
        umask: The mask for the modes of new files; -1 for that of the starter.
        is_safe: Keep the folder out of the path, as `-P` does.
        starter: The id of the process that starts it; 0 if the process has no parent.
        sample: A parsed dbt project. dbt compiles its decoder when it decodes the first one; empty if there is none.
    """

    arguments: tuple[str, ...]
    options: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]
    numbers: tuple[int, ...]
    session: bool
    group: int | None
    umask: int
    is_safe: bool
    starter: int
    sample: str


class Popen(OrdinaryPopen):  # type: ignore[type-arg]
    """`subprocess.Popen`, which starts the programs of this product and dbt by a fork server."""

    def _execute_child(self, *given: Any) -> None:
        command, executable, preexec, _, pass_fds, folder, environment, _, _, shell, *rest = given
        *pipes, _, gid, gids, uid, umask, session, group = rest
        is_special = executable or preexec or shell or any(each is not None for each in (gid, gids, uid))
        start = None if is_special else _read(command)
        folder = os.fspath(folder or os.curdir)
        variables = dict(os.environ if environment is None else environment)
        # The start of the run's server does not wait until the fork server has its modules.
        is_early = start is not None and not start.starter and os.getpid() not in _made
        if start is None or is_early or not _is_alike(variables) or not os.access(folder, os.X_OK):
            super()._execute_child(*given)  # type: ignore[misc]
            return
        stdin, _, _, stdout, _, stderr = pipes
        standard = [number if own == -1 else own for number, own in enumerate((stdin, stdout, stderr))]
        complete = replace(
            start,
            folder=str(Path(folder).absolute()),
            environment=variables,
            numbers=(0, 1, 2, *sorted(pass_fds)),
            session=bool(session),
            group=None if group == -1 else group,
            umask=umask,
            sample=next((str(each) for each in samples.glob("parsed-*.msgpack")), "") if samples else "",
        )
        self.pid = _fork_server().start(complete, [*standard, *sorted(pass_fds)])
        if not start.starter:
            # The starter waits for the end of a shell, and this program takes the place of the shell.
            super()._execute_child(["true"], *given[1:])  # type: ignore[misc]
            return
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _read(command: object) -> _Start | None:
    """Return the program of a command that a fork server can start; None for other commands."""
    if isinstance(command, str | bytes | os.PathLike) or not isinstance(command, Sequence):
        return None
    words = [os.fsdecode(each) for each in command]
    is_detached = words[: len(_DETACHED)] == _DETACHED
    python, *arguments = words[len(_DETACHED) :] if is_detached else words
    if python != sys.executable:
        return None
    options = []
    is_safe = False
    while arguments and arguments[0] in {"-P", "-W"}:
        if arguments.pop(0) == "-W":
            options.append(arguments.pop(0))
        else:
            is_safe = True
    if len(arguments) < 2:
        return None
    kind, program = arguments[:2]
    child = _CHILD.fullmatch(program)
    known = program in _MODULES if kind == "-m" else program in programs or (child and child["module"] in _CHILDREN)
    if kind not in {"-m", "-c"} or not known:
        return None
    starter = 0 if is_detached else os.getpid()
    return _Start(tuple(arguments), tuple(options), "", {}, (), False, None, -1, is_safe, starter, "")


def _is_alike(environment: Mapping[str, str]) -> bool:
    """Return whether the variables that Python reads at its start are those of this process."""

    def of_python(variables: Mapping[str, str]) -> dict[str, str]:
        names = {name for name in variables if name.startswith(_READ_AT_START)} - {"PYTHONPATH"}
        return {name: variables[name] for name in names}

    return of_python(environment) == of_python(os.environ)


class _ForkServer:
    """The starter's side of a process that forks."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def start(self, start: _Start, descriptors: Sequence[int]) -> int:
        """Start a program as a child of this process, or without a parent, and return its process id."""
        with self._lock:
            self._adopt_orphans(int(start.starter != 0))
            try:
                socket.send_fds(self._link, [pickle.dumps(start)], descriptors)
                answer = self._link.recv(64)
            finally:
                self._adopt_orphans(0)
        if not answer:
            raise RuntimeError("The fork server has ended.")
        return int(answer)

    def _adopt_orphans(self, switch: int) -> None:
        if self._libc.prctl(_PR_SET_CHILD_SUBREAPER, switch, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


_made: dict[int, _ForkServer] = {}
_making = threading.Lock()


def _fork_server() -> _ForkServer:
    """Return the fork server of this process, which is started for the first program."""
    with _making:
        if os.getpid() not in _made:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
            with there:
                program = f"from {__name__} import main; main({there.fileno()})"
                # The system keeps a command line in the place that it had at first, so this one is long.
                command = [sys.executable, "-c", program, "-" * 4000]
                process = OrdinaryPopen(command, cwd=ROOT, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL)
                # The server ends with this process, and no process waits for the server.
                process.returncode = 0
            _made[os.getpid()] = _ForkServer(here)
        return _made[os.getpid()]


# Python's filters of warnings, before dbt adds its own.
_filters: list[Any] = []


def main(descriptor: int) -> None:
    """Import the modules of the programs, and start programs until the starter has ended."""
    _filters.extend(warnings.filters)
    for module in _IMPORTS:
        import_module(module)
    # A forked process copies each page that it writes to, and the collector of cycles writes to all.
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=descriptor))


def _serve(link: socket.socket) -> None:
    """Start programs until the starter has ended."""
    # A signal for a forked process waits until the process has its own handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    while True:
        message, descriptors, _, _ = socket.recv_fds(link, _MESSAGE_BYTES, _MOST_DESCRIPTORS)
        if not message:
            os._exit(0)
        start: _Start = pickle.loads(message)  # noqa: S301 - from the starter
        _decode_first(start.sample)
        reader, writer = os.pipe()
        middle = os.fork()
        if not middle:
            process = os.fork()
            if process:
                os.write(writer, str(process).encode())
                os._exit(0)
            _run(start, descriptors)
        os.close(writer)
        for each in descriptors:
            os.close(each)
        os.waitpid(middle, 0)
        link.send(os.read(reader, 64))
        os.close(reader)


_decoded: set[str] = set()


def _decode_first(sample: str) -> None:
    """Decode one parsed project. All later processes share the decoder that dbt compiles for it."""
    if sample and not _decoded:
        # The starter imports this module as well, and not every starter runs dbt.
        from dbt.parser.manifest import Manifest, extended_mashumuro_decoder  # noqa: PLC0415

        from tests.support.quick_dbt import quicken  # noqa: PLC0415

        _decoded.add(sample)
        Manifest.from_msgpack(Path(sample).read_bytes(), decoder=extended_mashumuro_decoder)
        quicken(Path(sample).parent)


def _run(start: _Start, descriptors: Sequence[int]) -> NoReturn:
    """Turn this process into a program, and end with it."""
    # The child between the two may not have ended yet, and the program may ask for its parent.
    deadline = time.monotonic() + 60
    while start.starter and os.getppid() != start.starter:
        if time.monotonic() > deadline:
            os._exit(1)  # the starter has ended
        time.sleep(0.0005)
    _take(descriptors, start.numbers)
    if start.session:
        os.setsid()
    if start.group is not None:
        os.setpgid(0, start.group)
    if start.umask >= 0:
        os.umask(start.umask)
    os.chdir(start.folder)
    os.environ.clear()
    os.environ.update(start.environment)
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        raw = io.FileIO(number, "w", closefd=False)
        is_direct = number == 2 or raw.isatty()
        stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors=errors, line_buffering=is_direct)
        setattr(sys, name, stream)
    _use_package(start)
    kind, program, *arguments = start.arguments
    if "dbt" not in program:
        # dbt adds them when it is imported, which most programs never do.
        logging.root.handlers.clear()
        warnings.filters[:] = _filters
        warnings._filters_mutated()  # type: ignore[attr-defined]
    sys.warnoptions[:] = start.options
    for option in start.options:
        warnings._setoption(option)  # type: ignore[attr-defined]
    if program != "dbt.cli.main" and arguments and arguments[0] in _STARTERS:
        _start_fork_server()
    _show((sys.executable, *start.arguments))
    os._exit(_finish(lambda: _call(kind, program, arguments)))


# Above the descriptors that a starter passes on.
_FIRST_FREE = 500


def _take(descriptors: Sequence[int], numbers: Sequence[int]) -> None:
    """Give descriptors their numbers, and close all others of this process."""
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, _FIRST_FREE) for each in descriptors]
    os.closerange(0, _FIRST_FREE)
    # Each process has its own tracker of semaphores; the pipe to that of the fork server is closed now.
    tracker = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None
    for each, number in zip(moved, numbers, strict=True):
        os.dup2(each, number)
        os.close(each)


def _use_package(start: _Start) -> None:
    """Forget the modules of this package if the process finds the package elsewhere or shares its metrics."""
    places = [] if start.is_safe else [start.folder]
    places += filter(None, start.environment.get("PYTHONPATH", "").split(os.pathsep))
    found = next((place for place in places if Path(place, "loader", "__init__.py").exists()), str(ROOT))
    is_elsewhere = Path(found).resolve() != ROOT.resolve()
    if is_elsewhere or _SHARED_METRICS in start.environment:
        for name in [each for each in sys.modules if each.partition(".")[0] in _WITH_METRICS]:
            del sys.modules[name]
    if is_elsewhere:
        sys.path.insert(0, found)


def _show(command: Sequence[str]) -> None:
    """Change the command line in the list of processes."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(after_name[45]), int(after_name[46])
    shown = "\0".join(command).encode()[: end - begin - 1]
    ctypes.memmove(begin, shown.ljust(end - begin, b"\0"), end - begin)


def _start_fork_server() -> None:
    """Start the fork server of this process by a fork, while this process has no threads and connections."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
    if not os.fork():
        nothing = os.open(os.devnull, os.O_RDWR)
        _take([nothing, nothing, nothing, there.fileno()], [0, 1, 2, 3])
        _serve(socket.socket(fileno=3))
    there.close()
    _made[os.getpid()] = _ForkServer(here)
    subprocess.Popen = Popen  # type: ignore[misc]


def _call(kind: str, program: str, arguments: Sequence[str]) -> None:
    """Run a program as `python -m` or `python -c` does."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    sys.argv = [kind, *arguments]
    sys.orig_argv[:] = [sys.executable, kind, program, *arguments]
    if kind == "-m":
        sys.modules.pop(program) if "." in program else None
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(program, vars(sys.modules["__main__"]))  # noqa: S102 - the program of the product


def _finish(call: Callable[[], None]) -> int:
    """Call a function and do everything that Python does at its end; returns the exit code."""
    code = 0
    try:
        call()
    except SystemExit as end:
        if isinstance(end.code, int):
            code = end.code & 0xFF
        elif end.code is not None:
            sys.stderr.write(f"{end.code}\n")
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - as Python does
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:
            code = 120
    return code
