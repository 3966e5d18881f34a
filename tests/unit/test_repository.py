"""Rules of the repository: its documents are complete, and files that belong together exist together."""

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
from tests.conftest import TARGETS
from tests.support.folders import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODELS = sorted((ROOT / "dbt_project" / "models").rglob("*.sql"))
GENERIC_TESTS = {path.stem for path in (ROOT / "dbt_project" / "tests" / "generic").glob("*.sql")}
REVISIONS = sorted((ROOT / "migrations" / "versions").glob("*.sql"))
MODULES = sorted((ROOT / "loader").rglob("*.py"))

# The text is split, so that this file does not contain the text that the test looks for.
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b")

# The two database APIs, and the methods of `Database` that open a connection of each API.
APIS = {"psycopg": {"autocommit", "connect"}, "sqlalchemy": {"begin"}}


def commands(group: click.Group, path: str = "loader") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that runs, and the words that run it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_command_and_option_has_a_description(typed: str) -> None:
    """Each option has a description too."""
    command = COMMANDS[typed]
    assert command.help, f"`{typed} --help` says nothing"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"`{typed}` does not say what {option.opts[-1]} is for"


def test_the_operations_explain_every_reason_and_every_metric() -> None:
    """The page has each reason, and each metric with its name in Prometheus."""
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    counted = [f"{each.name}_total" if each.type == "counter" else each.name for each in registry.collect()]
    assert [name for name in [*Reason, *counted] if f"`{name}`" not in operations] == []


def test_the_readme_and_the_ci_use_targets_of_the_makefile() -> None:
    """A person can run each step of the CI by hand, under the same name."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z-]+)`", README + contributing))
    named |= set(re.findall(r"^    make ([a-z-]+)$", README + contributing, re.MULTILINE))
    assert {"demo", "test", "lint"} <= named <= targets
    assert re.search(r"^for target in lint test;", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_mark_that_make_test_leaves_out_has_a_target() -> None:
    """`make test` leaves out tests with a mark, and its summary names the target that runs these tests."""
    recipes = dict(re.findall(r"^([a-z-]+):.*\n\t(.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    marks = [each.split(":")[0] for each in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
    assert sorted(marks) == sorted(TARGETS)
    for mark, command in TARGETS.items():
        assert f"not {mark}" in recipes["test"]
        assert re.search(rf'-m "?{mark}\b', recipes[command.removeprefix("make ")])


def test_every_model_has_its_yml_beside_it() -> None:
    """The yml lists the columns of the table, so model and yml need each other."""
    described = sorted(path.with_suffix(".sql") for path in (ROOT / "dbt_project" / "models").rglob("*.yml"))
    with_models = [path for path in described if not path.name.startswith("_") and path.stem != "sources"]
    assert with_models == MODELS


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_a_model_is_described_by_its_own_yml(model: Path) -> None:
    """A yml describes one model, under its name, with keys that dbt reads. dbt ignores unknown keys."""
    [described] = yaml.safe_load(model.with_suffix(".yml").read_text(encoding="utf-8"))["models"]
    assert described["name"] == model.stem
    assert described.keys() <= {"name", "description", "config", "constraints", "data_tests", "columns", "time_spine"}
    for column in described["columns"]:
        assert column.keys() <= {"name", "data_type", "description", "config", "data_tests", "granularity"}
        assert column["description"]
    assert {
        next(iter(test)) if isinstance(test, dict) else test for test in described.get("data_tests", [])
    } <= GENERIC_TESTS


def test_the_migrations_are_one_chain_of_pairs() -> None:
    """Each migration has its SQL beside it and follows the previous migration."""
    scripts = [path.with_suffix(".py") for path in REVISIONS]
    assert scripts == sorted((ROOT / "migrations" / "versions").glob("*.py"))
    previous = None
    for script in scripts:
        revision = runpy.run_path(str(script))
        assert revision["revision"] == script.stem.split("_")[0]
        assert revision["down_revision"] == previous
        previous = revision["revision"]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_has_a_docstring_that_begins_with_a_sentence(module: Path) -> None:
    """The first docstring begins with one sentence. A package below `loader` has no code in its `__init__.py`."""
    code = module.read_text(encoding="utf-8")
    if module.name == "__init__.py" and module.parent.name != "loader":
        assert code == ""
    else:
        docstring = ast.get_docstring(ast.parse(code))
        assert docstring
        assert docstring.split("\n\n")[0].endswith(".")


def test_only_one_module_uses_both_apis_of_the_database() -> None:
    """SQLAlchemy is the control plane and psycopg the data path. Only `loader.postgres.database` opens both."""
    both = [module.relative_to(ROOT).as_posix() for module in MODULES if len(apis(ast.parse(module.read_text()))) == 2]
    assert both == ["loader/postgres/database.py"]


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("import psycopg\nfrom sqlalchemy import text", {"psycopg", "sqlalchemy"}),
        ("from psycopg.rows import dict_row", {"psycopg"}),
        ("with database.begin() as a, database.autocommit() as b: found = find(a, b)", set()),
        ("with database.begin() as a: a.execute(query)", {"sqlalchemy"}),
        ("with database.begin() as a: a.execute(query)\nwith database.connect() as b: b.execute(query)", APIS.keys()),
        ("import psycopg\nwith database.begin() as a: a.execute(query)", {"psycopg", "sqlalchemy"}),
    ],
    ids=["both", "psycopg", "hands connections on", "SQLAlchemy", "runs statements with both", "imports the other"],
)
def test_the_apis_that_a_module_uses_are_found(code: str, used: set[str]) -> None:
    """The imports show the APIs, and so do the connections that run statements."""
    assert apis(ast.parse(code)) == used


def apis(code: ast.Module) -> set[str]:
    """Return the database APIs of a module, by its imports and its connections."""
    modules = [alias.name for node in ast.walk(code) if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in ast.walk(code) if isinstance(node, ast.ImportFrom) and node.module]
    calls = {
        node.func.attr for node in ast.walk(code) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    opened = calls if calls & {"execute", "executemany"} else set()
    imported = {module.split(".")[0] for module in modules}
    return {api for api, opening in APIS.items() if api in imported or opening & opened}


def test_every_statement_is_read_by_the_module_it_is_named_after() -> None:
    """Every file has a reader, and every reader has a file."""
    read = {
        module.with_name(f"{module.stem}_{name}.sql")
        for module in MODULES
        for name in re.findall(r'read_statement\(__file__, "(\w+)"\)', module.read_text(encoding="utf-8"))
    }
    assert read == set((ROOT / "loader").rglob("*.sql"))


def test_modules_import_at_their_top_except_slow_packages() -> None:
    """The exceptions are slow packages that few commands need."""
    inside = {
        module.relative_to(ROOT).as_posix(): sorted(imported)
        for module in MODULES
        if (imported := imports_of_functions(ast.parse(module.read_text(encoding="utf-8"))))
    }
    assert inside == {
        "loader/files/exports.py": ["pandas", "pyarrow"],
        "loader/postgres/database.py": ["alembic"],
        "loader/transform/dbt.py": ["dbt"],
        "loader/transform/dbt_internals.py": ["dbt", "dbt_common"],
    }


def imports_of_functions(code: ast.Module) -> set[str]:
    """Return the packages that functions import."""
    functions = [node for node in ast.walk(code) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [node for function in functions for node in ast.walk(function)]
    modules = {alias.name for node in inside if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in inside if isinstance(node, ast.ImportFrom)}
    return {module.split(".")[0] for module in modules}


def test_no_file_has_a_mark_of_unfinished_work() -> None:
    """No file contains a mark of unfinished work."""
    kinds = ("*.py", "*.sql", "*.yml", "*.md", "*.toml")
    folders = [ROOT / name for name in ("loader", "migrations", "dbt_project", "tests", "docs")]
    files = [path for folder in folders for kind in kinds for path in folder.rglob(kind)]
    files += [path for kind in kinds for path in ROOT.glob(kind)]
    kept = [path for path in files if not {"target", "logs"} & set(path.parts)]
    assert [str(path) for path in kept if UNFINISHED.search(path.read_text(encoding="utf-8"))] == []


def test_package_metadata_and_changelog_have_the_same_version() -> None:
    """The version is the same in the package, its metadata and the changelog."""
    assert PROJECT["project"]["version"] == loader.__version__
    assert f"\n## [{loader.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_constraints_pin_every_dependency_and_name_no_host() -> None:
    """Every line is a comment or a name and a version. Each dependency has a line, and no line names a host."""
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
    """Return a distribution's name in the form that package indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()
