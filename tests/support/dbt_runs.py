"""Runs of dbt, in this process and in others, on the whole project or a copy."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

from click.testing import CliRunner

import loader.transform.dbt
from loader.postgres.database import Database, bundled, connection_environment
from loader.settings import Settings
from loader.transform.dbt import TableFilled, project_arguments, transform
from loader.transform.dbt_internals import tidied

PROJECT = bundled("dbt_project")


def run(database: Database, settings: Settings, *select: str, full_refresh: bool = False) -> list[TableFilled]:
    """Run dbt in this process, on some models or all models; none may fail."""
    filled = transform(database, settings, select=select, full_refresh=full_refresh)
    failed = [f"{table.source}.{table.table}: {table.error}" for table in filled if table.error]
    assert not failed, "; ".join(failed)
    return filled


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside the test, and end the program if it is still running at the end."""
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def succeed(process: subprocess.Popen[bytes]) -> None:
    """Wait for a program, and check that it succeeds."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output.decode(errors="replace")


# The environment of the first parse. In another environment, dbt parses the project again.
AS_PARSED = {"LOADER_SCHEMA": "iterable"}


def project_in_use() -> Path:
    """Return the folder of the dbt project for runs in this process: the whole project, or a test's own."""
    return loader.transform.dbt.bundled("dbt_project")


def parse_once(settings: Settings) -> None:
    """Parse the project in use, unless the home has the result; a new process would take longer."""
    if not (settings.home / "dbt" / "target" / "partial_parse.msgpack").exists():
        code, output = run_dbt(settings.database_url, project_in_use(), "parse", *project_arguments(settings))
        assert code == 0, output


def parsed(settings: Settings) -> Path:
    """Return a new folder for the artifacts of another dbt, with the parsed project."""
    parse_once(settings)
    folder = Path(tempfile.mkdtemp(dir=settings.home)) / "dbt"
    shutil.copytree(settings.home / "dbt", folder)
    return folder


def copied_project(settings: Settings) -> Path:
    """Return the folder of a parsed copy of the dbt project, in which a test may change files."""
    project = parsed(settings).with_name("project")
    shutil.copytree(project_in_use(), project, ignore=shutil.ignore_patterns("target", "logs"))
    shutil.move(project.with_name("dbt") / "target", project)
    return project


@contextmanager
def start_dbt(settings: Settings, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start dbt as people do by hand: in its folder, with the connection in PG* variables."""
    folder = parsed(settings)
    project = project_in_use()
    command = [sys.executable, "-m", "dbt.cli.main", "--quiet", *arguments]
    command += ["--target-path", str(folder / "target"), "--log-path", str(folder / "logs")]
    with started(command, AS_PARSED | connection_environment(settings.database_url) | variables, project) as process:
        yield process


def run_dbt(
    url: str, project: Path, *arguments: str, parsed_as: Mapping[str, str] = AS_PARSED, artifacts: bool = False
) -> tuple[int, str]:
    """Run dbt like `start_dbt`, but in a copied project and in this process; return its exit code and output.

    With `artifacts`, dbt writes manifest.json and run_results.json, which takes as long as the run of a model.
    """
    # The import takes seconds, and the process that distributes the tests runs no dbt.
    from dbt.cli.main import cli as dbt_command  # noqa: PLC0415

    with chdir(project), tidied():
        done = CliRunner(env={**parsed_as, **connection_environment(url), "DBT_WRITE_JSON": str(artifacts)}).invoke(
            dbt_command, ["--no-use-colors", "--log-level-file=none", *arguments], catch_exceptions=False
        )
    return done.exit_code, done.output
