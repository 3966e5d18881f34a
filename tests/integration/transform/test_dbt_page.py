"""The page docs/dbt.md: every command on it runs as typed, in the order of the page."""

import re
import shlex
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import psycopg
import pytest
import yaml

from loader.settings import Settings
from tests.conftest import loader_here
from tests.integration.transform.test_targets import land_calls
from tests.support.dbt_runs import AS_PARSED, copied_project, run_dbt
from tests.support.folders import ROOT

PAGE = (ROOT / "docs" / "dbt.md").read_text(encoding="utf-8")
SQL = re.compile(r"(create|grant|alter|drop) ")
# The installation of another dbt needs a network. And dbt runs in a copy of the folder that a person's shell enters.
NOT_RUN = {'python3 -m venv ../dbt && ../dbt/bin/pip install "dbt-core>=1.12,<2" dbt-postgres', "cd dbt_project"}


def blocks() -> list[str]:
    """Return the indented blocks of the page, without their indentation."""
    found = re.findall(r"^\n((?: {4}.*\n|\n(?= {4}))+)", PAGE, re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip() for block in found]


def is_yaml(block: str) -> bool:
    """Return whether a block is a part of a yml."""
    return block.split("\n", 1)[0].endswith(":")


@pytest.fixture
def project(small_settings: Settings) -> Iterator[Path]:
    """Return a copy of the project, whose database has events; the roles of the page are dropped in the end."""
    yield copied_project(small_settings)
    with psycopg.connect(small_settings.database_url, autocommit=True) as connection:
        connection.execute("drop owned by ada cascade; drop role ada")


@pytest.mark.heavy
def test_every_command_of_the_page_works_as_typed(small_settings: Settings, project: Path) -> None:
    """Commands of dbt and the loader run in this process, and SQL runs in the database."""
    loader = loader_here(small_settings)
    variables = dict(AS_PARSED)
    run = 0
    with psycopg.connect(small_settings.database_url, autocommit=True) as connection:
        land_calls(connection, "Email Opened", "a", "b")
        land_calls(connection, "Order Placed", "c", total=5)
        for line in [line for block in blocks() if not is_yaml(block) for line in block.split("\n")]:
            if line in NOT_RUN:
                continue
            run += 1
            if SQL.match(line):
                connection.execute(line.replace("database warehouse", f'database "{connection.info.dbname}"'))  # type: ignore[call-overload]
                continue
            program, *arguments = shlex.split(line)
            if program == "dbt":
                code, output = run_dbt(
                    small_settings.database_url, project, *arguments, parsed_as=variables, artifacts=True
                )
                assert code == 0, (line, output)
            elif program == "loader":
                with chdir(project):
                    done = loader(*arguments)
                assert done.returncode == 0, (line, done.stderr)
            elif program == "export":
                variables.update([arguments[0].split("=", 1)])
            else:
                assert line == 'eval "$(loader url --env)"'
                assert "export PGHOST=" in loader("url", "--env").stdout
        rows = connection.execute("select id, total from iterable.order_placed").fetchall()
        remaining = connection.execute("select to_regnamespace('dbt_ada_iterable'), to_regnamespace('ci_42_iterable')")
        assert remaining.fetchone() == ("dbt_ada_iterable", None)
    assert rows == [("c", 5)]
    assert run > 20


def test_the_yml_examples_of_the_page_have_the_projects_defaults() -> None:
    """The default values on the page are those of the project."""
    examples = [yaml.safe_load(block) for block in blocks() if is_yaml(block)]
    assert [next(iter(example)) for example in examples] == ["iterable_warehouse", "vars", "models"]
    macros = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dbt_project" / "macros").glob("*.sql"))
    assert f"var('production_targets', {examples[1]['vars']['production_targets']})" in macros
    assert f"var('development_days', {examples[1]['vars']['development_days']})" in macros
