"""What the repository promises about itself: documents that name everything there is, files that belong together."""

import ast
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

import loader
from loader.cli.app import main
from loader.events.model import Reason
from loader.runtime.metrics import registry
from loader.settings import describe
from tests.support.folders import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODELS = sorted((ROOT / "dbt_project" / "models").rglob("*.sql"))
GENERIC_TESTS = {path.stem for path in (ROOT / "dbt_project" / "tests" / "generic").glob("*.sql")}
REVISIONS = sorted((ROOT / "migrations" / "versions").glob("*.sql"))
MODULES = sorted((ROOT / "loader").rglob("*.py"))

# Written so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b")


def commands(group: click.Group, path: str = "loader") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that can be run, and what is typed to run it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_command_explains_itself_and_is_in_the_readme(typed: str) -> None:
    """So does each of its options."""
    command = COMMANDS[typed]
    assert command.help, f"`{typed} --help` says nothing"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"`{typed}` does not say what {option.opts[-1]} is for"
    assert f"`{typed}" in README, f"README.md does not name `{typed}`"


def test_the_readme_names_no_command_that_is_not_there() -> None:
    """What follows `loader` in code is a command, or a group of some."""
    groups = {typed.rsplit(" ", 1)[0] for typed in COMMANDS}
    named = {f"loader {match}" for match in re.findall(r"(?:^    |`|\$\()loader ([a-z-]+)", README, re.MULTILINE)}
    assert named <= COMMANDS.keys() | groups


def test_the_readme_lists_the_settings_as_they_are() -> None:
    """Name, description and default of each, in the order of `loader --help`."""
    rows = re.findall(r"^\| `((?:LOADER_|DATABASE_URL)\w*)` \| (.*?) \| (?:(.*?) )?\|$", README, re.MULTILINE)
    assert rows == [(name, text, default) for name, default, text in describe()]


def test_the_operations_explain_every_reason_and_every_metric() -> None:
    """Whoever meets one finds it there, with the metrics' names as Prometheus shows them."""
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    counted = [f"{each.name}_total" if each.type == "counter" else each.name for each in registry.collect()]
    assert [name for name in [*Reason, *counted] if f"`{name}`" not in operations] == []


def test_the_readme_and_the_ci_use_the_targets_everybody_has() -> None:
    """What the CI runs can be run by hand, under the same name."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z]+)`", README + contributing))
    named |= set(re.findall(r"^    make ([a-z]+)$", README + contributing, re.MULTILINE))
    assert {"demo", "test", "lint"} <= named <= targets
    assert re.search(r"^for target in lint test;", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_model_has_its_yml_beside_it() -> None:
    """The yml says what the table's columns are, so neither is anything without the other."""
    described = sorted(path.with_suffix(".sql") for path in (ROOT / "dbt_project" / "models").rglob("*.yml"))
    with_models = [path for path in described if not path.name.startswith("_") and path.stem != "sources"]
    assert with_models == MODELS


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_a_model_is_described_by_its_own_yml(model: Path) -> None:
    """Under its own name, alone, with keys and tests that dbt finds: it passes over those it does not know."""
    [described] = yaml.safe_load(model.with_suffix(".yml").read_text(encoding="utf-8"))["models"]
    assert described["name"] == model.stem
    assert described.keys() <= {"name", "description", "config", "data_tests", "columns"}
    for column in described["columns"]:
        assert column.keys() <= {"name", "data_type", "description", "config", "data_tests"}
        assert column["description"]
    assert {
        next(iter(test)) if isinstance(test, dict) else test for test in described.get("data_tests", [])
    } <= GENERIC_TESTS


def test_the_migrations_are_one_chain_of_pairs() -> None:
    """Each has its SQL beside it and follows the one before it."""
    scripts = [path.with_suffix(".py") for path in REVISIONS]
    assert scripts == sorted((ROOT / "migrations" / "versions").glob("*.py"))
    previous = None
    for script in scripts:
        revision = runpy.run_path(str(script))
        assert revision["revision"] == script.stem.split("_")[0]
        assert revision["down_revision"] == previous
        previous = revision["revision"]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_says_why_it_exists(module: Path) -> None:
    """Its first docstring begins with one sentence. A package below `loader` has no code of its own."""
    code = module.read_text(encoding="utf-8")
    if module.name == "__init__.py" and module.parent.name != "loader":
        assert code == ""
    else:
        docstring = ast.get_docstring(ast.parse(code))
        assert docstring
        assert docstring.split("\n\n")[0].endswith(".")


def test_nothing_is_left_for_later() -> None:
    """What is not done is not there."""
    kinds = ("*.py", "*.sql", "*.yml", "*.md", "*.toml")
    folders = [ROOT / name for name in ("loader", "migrations", "dbt_project", "tests", "docs")]
    files = [path for folder in folders for kind in kinds for path in folder.rglob(kind)]
    files += [path for kind in kinds for path in ROOT.glob(kind)]
    kept = [path for path in files if not {"target", "logs"} & set(path.parts)]
    assert [str(path) for path in kept if UNFINISHED.search(path.read_text(encoding="utf-8"))] == []


def test_the_version_is_one_version() -> None:
    """In the package, in its metadata and in the changelog."""
    assert PROJECT["project"]["version"] == loader.__version__
    assert f"\n## [{loader.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_constraints_pin_what_is_declared_and_say_nothing_of_where_it_is() -> None:
    """Every line is a comment or a name and a version; each dependency has its line."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    groups = PROJECT["dependency-groups"]
    declared = [
        *PROJECT["project"]["dependencies"],
        *PROJECT["build-system"]["requires"],
        *groups["test"],
        *groups["lint"],
    ]
    names = {canonical(re.split(r"[\[<>=~! ]", line)[0]) for line in declared}
    assert names - {canonical(line.split("==")[0]) for line in pins} == set()


def canonical(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
