"""The dbt project on dbt-core 1.12, which the Python package does not install."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import connection_environment
from loader.settings import Settings
from tests.integration.transform.test_targets import land_calls
from tests.support.dbt_runs import AS_PARSED, copied_project

# dbt-core 1.12 also requires a parser whose build downloads files from outside the package index. dbt runs without it.
PACKAGES = ("dbt-core>=1.12,<2", "dbt-postgres", "dbt-adapters", "dbt-common", "dbt-semantic-interfaces")


@pytest.fixture(scope="module")
def newer_dbt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with dbt-core 1.12 or later, which goes before the installed one; without it, skip the test."""
    folder = tmp_path_factory.mktemp("newer_dbt")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]
    done = subprocess.run([*pip, folder, *PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"dbt-core 1.12 cannot be installed here, so the project did not run on it: {done.stderr[-300:]}")
    return folder


@pytest.mark.heavy
def test_the_project_builds_on_dbt_core_1_12(newer_dbt: Path, small_settings: Settings) -> None:
    """`dbt build` fills the tables, and its tests pass. `test_dbt_page.py` does so on the installed dbt-core."""
    project = copied_project(small_settings)
    with psycopg.connect(small_settings.database_url, autocommit=True) as connection:
        land_calls(connection, "Email Opened", "a", "b", campaignId=7)
        done = subprocess.run(
            [sys.executable, "-c", "from dbt.cli.main import cli; cli()", "build", "--no-partial-parse"],
            cwd=project,
            env=os.environ
            | AS_PARSED
            | connection_environment(small_settings.database_url)
            | {"PYTHONPATH": str(newer_dbt)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        opened = connection.execute("select id, campaign_id from iterable.email_opened order by id").fetchall()
    assert opened == [("a", 7), ("b", 7)]
    results = json.loads((project / "target" / "run_results.json").read_text(encoding="utf-8"))
    version = results["metadata"]["dbt_version"].split(".")
    assert (int(version[0]), int(version[1])) >= (1, 12)
