"""The wheel: its content, and its use without a checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from loader.sample.events import generate_sample_events
from tests.support.folders import ROOT

SHIPPED = ("loader", "migrations", "dbt_project")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
OFFLINE = ("--no-index", "--no-deps")
IGNORED = shutil.ignore_patterns("__pycache__", "target", "logs")


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_under(folder: Path) -> set[str]:
    """Return the paths of all files in a folder, relative to the folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the shipped files, with other files that a working copy collects and must not ship."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("dbt_project/target/manifest.json", "dbt_project/logs/dbt.log", "loader/__pycache__/cli.pyc"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("")
    return folder


@pytest.fixture(scope="module")
def sdist(copied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=copied)
    [archive] = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that is made from the source distribution, which must contain everything for the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, sdist, cwd=folder)
    [archive] = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new environment with the wheel, which finds the dependencies in the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(*PIP, "--python", python, "install", *OFFLINE, wheel, cwd=folder)
    # A folder in a .pth file comes last in the path, and .pth files in it do not count. So the working copy is
    # invisible.
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages(folder) / "dependencies.pth").write_text("\n".join(sorted(paths)))
    return folder


def site_packages(environment: Path) -> Path:
    """Return the folder of an environment's packages."""
    [folder] = environment.glob("lib/python*/site-packages")
    return folder


def test_the_wheel_has_only_the_package_the_dbt_project_and_the_migrations(copied: Path, wheel: Path) -> None:
    """It has the files of the repository's three folders, and no file that a working copy collects."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    expected = files_under(ROOT / "loader")
    for folder in ("migrations", "dbt_project"):
        expected |= {f"{folder}/{name}" for name in files_under(ROOT / folder)}
    expected = {name for name in expected if not {"__pycache__", "target", "logs"} & set(Path(name).parts)}
    assert names == {f"loader/{name}" for name in expected if Path(name).name not in {".user.yml", ".sqlfluff"}}
    macro, statement = "loader/dbt_project/macros/event_columns.sql", "loader/raw/lag_waiting.sql"
    assert {"loader/py.typed", macro, statement} <= names
    assert licences, "the licence is missing"


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def use_package(run_loader: Callable[..., str], package: Path, here: Path, *select: str) -> None:
    """Fill tables of an empty database with a few sample events; nothing may be written to the package."""
    events = here.parent / "events.ndjson"
    calls = generate_sample_events(date(2026, 5, 3), recipients=20).iterable
    events.write_text("".join(f"{json.dumps(call)}\n" for call in calls), encoding="utf-8")
    before = files_under(package)
    assert "transform" in run_loader("--help")
    run_loader("migrate")
    run_loader("source", "add", "Iterable")
    run_loader("load", events)
    run_loader("transform", *(f"--select={each}" for each in select))
    tracks = run_loader("sql", "--format", "csv", "select count(*) from iterable.tracks").split()
    assert tracks == ["count", str(len(calls))]
    assert [name for name in files_under(package) - before if not name.endswith(".pyc")] == []
    assert list(here.iterdir()) == [], "something was left in the folder it was run from"


@pytest.mark.heavy
def test_the_unpacked_package_works_from_an_empty_folder(unpacked: Path, empty_url: str, tmp_path: Path) -> None:
    """Processes with the package in their path fill two tables of an empty database, without a checkout."""
    here = tmp_path / "empty"
    here.mkdir()
    own = {"DATABASE_URL": empty_url, "LOADER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(unpacked)}

    def run_loader(*arguments: str | Path) -> str:
        return run(sys.executable, "-P", "-m", "loader", *arguments, cwd=here, env=os.environ | own)

    use_package(run_loader, unpacked, here, "email_opened", "tracks")


@pytest.mark.heavy
def test_the_installed_package_works_from_an_empty_folder(installed: Path, empty_url: str, tmp_path: Path) -> None:
    """The program of a new environment fills all tables of an empty database, without a checkout."""
    here, home = tmp_path / "empty", tmp_path / "home"
    here.mkdir()
    environment = {
        "DATABASE_URL": empty_url,
        "HOME": str(home),
        "LOADER_HOME": str(home),
        "PATH": os.defpath,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    python = installed / "bin" / "python"
    origin = run(python, "-c", "import loader; print(loader.__file__)", cwd=here, env=environment).strip()
    assert Path(origin).is_relative_to(site_packages(installed)), f"the tests would run {origin}"

    def run_loader(*arguments: str | Path) -> str:
        return run(installed / "bin" / "loader", *arguments, cwd=here, env=environment)

    use_package(run_loader, installed, here)
