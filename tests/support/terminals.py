"""Commands on a terminal: a process with a terminal as input, output and errors."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from contextlib import suppress

from loader.settings import Settings


def run_on_terminal(
    settings: Settings, *arguments: str, columns: int = 80, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `loader` on a terminal; return its exit code and its output."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {"DATABASE_URL": settings.database_url, "LOADER_HOME": str(settings.home), "TERM": "xterm"}
    inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "loader", *arguments],
        stdin=there,
        stdout=there,
        stderr=there,
        env=inherited | variables | dict(environment or {}),
        start_new_session=True,
    )
    os.close(there)
    sent = bytearray()
    # Linux reports the end of a terminal as an error.
    with suppress(OSError):
        while data := os.read(here, 65536):
            sent += data
    os.close(here)
    return process.wait(), sent.decode(errors="surrogateescape").replace("\r\n", "\n")
