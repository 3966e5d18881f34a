"""Starts a Python process that runs `main` of a module of this package, with or without a pipe to it."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

_PACKAGES = str(Path(__file__).parents[2])
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from {module} import main; main(*sys.argv[1:])"

# Room for a large message in the pipe, so that sending one does not wait for the child.
_PIPE_BYTES = 1 << 20


def python_command(module: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """Return the command that calls `main` of a module in a new Python process.

    The new process imports nothing else of this one, unlike a process of `multiprocessing`, which imports the command
    line again. `-P` and the package's place at the end of the path keep Python's modules visible. No file in the
    current folder or beside the package hides them.

    Args:
        module: The name of the module.
        arguments: The arguments of its `main`.
        options: Further options of Python.
    """
    return [sys.executable, "-P", *options, "-c", _PROGRAM.format(module=module), _PACKAGES, *arguments]


class ChildProcess:
    """A child process and the parent's end of the pipe to it.

    Ctrl-C on a terminal reaches the parent only, which decides how the child ends.

    Args:
        module: The module whose `main` the child calls, with the descriptor of its end of the pipe.
        greeting: The first object that the child receives.
        options: Further options of Python.
        is_silent: Discard what the child prints on stdout.

    Attributes:
        pipe: Sends objects to the child and receives those of the child.

    Raises:
        OSError: The system cannot start another process.
    """

    def __init__(self, module: str, greeting: object, *, options: Sequence[str] = (), is_silent: bool = False) -> None:
        here, there = socket.socketpair()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
        self.pipe = Connection(here.detach())
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with there:
                self._process = subprocess.Popen(
                    python_command(module, str(there.fileno()), options=options),
                    pass_fds=[there.fileno()],
                    process_group=0,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL if is_silent else None,
                )
            self.pipe.send(greeting)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the pipe, kill the child and wait for its end.

        A child that waits for something else, such as a lock of the database, does not notice a closed pipe.
        """
        self.pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
