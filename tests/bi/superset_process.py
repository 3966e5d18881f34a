"""Runs a Superset of this machine, with an environment that `make` has installed into `build/superset`."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.support.folders import ROOT

FOLDER = ROOT / "build" / "superset"
USER = PASSWORD = "admin"

_PROGRAM = FOLDER / "environment" / "bin" / "superset"
_START_SECONDS = 180.0
_POLL_SECONDS = 0.2


@contextmanager
def running_superset(home: Path, port: int = 0) -> Iterator[str]:
    """Start a Superset, and stop it afterwards.

    Args:
        home: The folder of its own database. A new folder gets a database without any dashboard.
        port: Its port on 127.0.0.1; 0 picks a free port.

    Yields:
        The address of Superset.
    """
    if not home.exists():
        shutil.copytree(_make_empty_home(), home)
    port = port or _free_port()
    url = f"http://127.0.0.1:{port}"
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [_PROGRAM, "run", "--port", str(port), "--with-threads"], env=_environment(home), stdout=log, stderr=log
        )
        try:
            _wait_until_healthy(url, process, home / "log")
            yield url
        finally:
            process.terminate()
            process.wait()


def _make_empty_home() -> Path:
    """Return a folder with the database of a Superset with one user; the first call makes the folder."""
    home = FOLDER / "empty"
    if not home.exists():
        making = FOLDER / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        (making / "secret_key").write_text(secrets.token_hex())
        person = ["--firstname", "Demo", "--lastname", "Admin", "--email", "admin@example.com"]
        for command in (
            ["db", "upgrade"],
            ["fab", "create-admin", "--username", USER, "--password", PASSWORD, *person],
            ["init"],
        ):
            done = subprocess.run(
                [_PROGRAM, *command], env=_environment(making), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        making.rename(home)
    return home


def _environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "FLASK_APP": "superset.app:create_app",
        "SUPERSET_CONFIG_PATH": str(Path(__file__).with_name("superset_config.py")),
        "SUPERSET_HOME": str(home),
        "SUPERSET_SECRET_KEY": (home / "secret_key").read_text(),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(_POLL_SECONDS)
    raise AssertionError(f"Superset did not start within {_START_SECONDS:.0f} s: {log.read_text()}")
