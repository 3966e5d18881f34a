"""An embedded PostgreSQL of one test, which may stop it, kill it and start it again."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loader.postgres.database import open_database
from loader.postgres.embedded import EmbeddedServer
from loader.settings import Settings
from tests.conftest import fast_folder
from tests.support.waiting import wait_until


def copy_cluster(original: Path, home: Path) -> None:
    """Copy the cluster of a home into another home, which has none or loses its own, and keep owners and permissions.

    Args:
        original: The home of a cluster, whose server may run.
        home: The home of the copy.
    """
    home.mkdir(exist_ok=True)
    shutil.rmtree(home / "embedded", ignore_errors=True)
    subprocess.run(["cp", "-a", original / "embedded", home], check=True)


@contextmanager
def own_server(cluster_template: Path) -> Iterator[Settings]:
    """Run the server of a copy of a cluster until the end of the block.

    Args:
        cluster_template: The home of the stopped cluster.

    Yields:
        Settings with the URL of the copy, which stays the same.
    """
    with tempfile.TemporaryDirectory(prefix="loader-server-", dir=fast_folder()) as folder:
        Path(folder).chmod(0o755)
        copy_cluster(cluster_template, Path(folder))
        settings = Settings(home=Path(folder), embedded_idle=30)
        with open_database(settings) as database:
            yield settings.model_copy(update={"database_url": database.url})
        EmbeddedServer(settings.home).stop()


def signal_server(settings: Settings, number: signal.Signals) -> None:
    """Send a signal to the server's main process when it runs; its other processes notice the end and end too."""
    wait_until(EmbeddedServer(settings.home).is_running, "the server to be started again")
    [file] = settings.home.glob("embedded/**/postmaster.pid")
    os.kill(int(file.read_text().split()[0]), number)


def stop_server(settings: Settings, number: signal.Signals) -> None:
    """Stop the server, and wait for its end: SIGINT is PostgreSQL's fast shutdown, SIGQUIT the immediate one."""
    signal_server(settings, number)
    wait_until(lambda: not EmbeddedServer(settings.home).is_running(), "the end of the server")


def restart_server(settings: Settings) -> None:
    """Start the server again, at the same address."""
    server = EmbeddedServer(settings.home, idle=settings.embedded_idle)
    server.acquire()
    server.release()
