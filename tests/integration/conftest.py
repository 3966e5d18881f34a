"""A dbt project with three tables, for tests of what happens around a run: it takes a quarter of the time."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

import loader.transform.dbt
from loader.postgres.database import Database, open_database
from loader.settings import Settings
from loader.transform.dbt import transform
from tests.conftest import Loader, drop_database, loader_here, open_settings, own_database
from tests.support.dbt_runs import parse_once, run_dbt
from tests.support.folders import ROOT

Dbt = Callable[..., tuple[int, str]]

KEPT = ("email_delivered", "email_opened", "tracks")


@pytest.fixture(scope="session")
def small_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the whole package, but few models: a process that has it in its path uses those."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("loader", "migrations", "dbt_project"):
        ignored = shutil.ignore_patterns("__pycache__", "target", "logs")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    models = folder / "dbt_project" / "models" / "iterable"
    for path in models.glob("*.*"):
        if path.suffix != ".md" and path.stem not in KEPT:
            path.unlink()
    # They name the tables that are left out.
    tracks = yaml.safe_load((models / "tracks.yml").read_text())
    del tracks["models"][0]["data_tests"]
    (models / "tracks.yml").write_text(yaml.safe_dump(tracks, sort_keys=False))
    return folder


@contextmanager
def used(package: Path) -> Iterator[None]:
    """Put that package's project in place of the whole one, in this process and in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader.transform.dbt, "bundled", lambda folder: package / folder)
        patch.setenv("PYTHONPATH", str(package))
        yield


@pytest.fixture(scope="session")
def small_template(
    server: str, raw_template: str, small_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """A database in which its tables have been made; its home has the project parsed."""
    home = tmp_path_factory.mktemp("home")
    name = f"small_{uuid.uuid4().hex[:12]}"
    with (
        used(small_package),
        own_database(server, home, raw_template, kept_as=name) as settings,
        open_database(settings) as database,
    ):
        transform(database, settings)
    yield open_settings(f"{server.rsplit('/', 1)[0]}/{name}", home)
    drop_database(server, name)


@pytest.fixture
def small_project(small_package: Path) -> Iterator[Path]:
    """The small project, in use."""
    with used(small_package):
        yield small_package / "dbt_project"


@pytest.fixture
def small_home(small_template: Settings, small_project: Path) -> Path:
    """A folder for databases that use the small project."""
    return small_template.home


@pytest.fixture
def small_settings(server: str, small_template: Settings, small_project: Path) -> Iterator[Settings]:
    """Settings that name a database of the test's own, in which those tables are there and empty."""
    with own_database(server, small_template.home, small_template.database_url.rsplit("/", 1)[1]) as opened:
        parse_once(opened)
        yield opened


@pytest.fixture
def small(small_settings: Settings) -> Iterator[Database]:
    """That database, open."""
    with open_database(small_settings) as opened:
        yield opened


@pytest.fixture
def unfilled_settings(
    server: str, raw_template: str, small_template: Settings, small_project: Path
) -> Iterator[Settings]:
    """Settings that name a database in which no run has been."""
    with own_database(server, small_template.home, raw_template) as opened:
        yield opened


@pytest.fixture
def unfilled(unfilled_settings: Settings) -> Iterator[Database]:
    """That database, open."""
    with open_database(unfilled_settings) as opened:
        yield opened


@pytest.fixture
def dbt(small_settings: Settings, small_project: Path) -> Dbt:
    """Run dbt on the small project as people do by hand; returns its exit code and output."""
    return partial(run_dbt, small_settings.database_url, small_project)


@pytest.fixture(name="loader")
def small_loader(small_settings: Settings) -> Loader:
    """Run `loader` in this process, against the same database."""
    return loader_here(small_settings)
