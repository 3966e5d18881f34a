"""Runs the demo and a Superset with its dashboards, for people and for the pictures of the documentation."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loader.postgres.database import open_database
from loader.settings import read_settings
from tests.bi.superset_process import FOLDER, PASSWORD, running_superset


@contextmanager
def demo_in_superset(port: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Show the demo's data in Superset.

    Args:
        port: The port of Superset; 0 picks a free port.

    Yields:
        The address of Superset, and those of the dashboards.
    """
    subprocess.run([sys.executable, "-m", "loader", "demo"], check=True)
    settings = read_settings()
    settings = settings.model_copy(update={"database_url": "", "home": settings.home / "demo"})
    # The open database does not stop for want of use.
    with open_database(settings), running_superset(FOLDER / "demo", port) as url:
        environment = os.environ | {"LOADER_HOME": str(settings.home), "LOADER_SUPERSET_PASSWORD": PASSWORD}
        environment.pop("DATABASE_URL", None)
        done = subprocess.run(
            [sys.executable, "-m", "loader", "bi", "superset", "--url", url, "--source", "Iterable"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        yield url, done.stdout.split()
