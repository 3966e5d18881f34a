"""Databases for the dbt project with three tables."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from loader.postgres.database import Database, open_database
from loader.settings import Settings
from loader.transform.dbt import transform
from tests.conftest import Loader, MakeOnce, alone, loader_here, open_settings, own_database
from tests.support.dbt_runs import parse_once, run_dbt
from tests.support.small_project import small_package, used

Dbt = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def small_template(make_once: MakeOnce, raw_template: str, small_package: Path, home: Path) -> Settings:
    """Return a database with the empty tables of the small project, and a folder for its artifacts."""

    def fill(settings: Settings) -> None:
        with open_database(settings) as database:
            transform(database, settings)

    # The databases of the whole project have the same names, and artifacts of their own.
    home /= "small"
    home.mkdir()
    with used(small_package):
        made = make_once("small_template", raw_template, fill)
    return open_settings(made.database_url, home)


@pytest.fixture
def small_project(small_package: Path) -> Iterator[Path]:
    """Use the small project."""
    with used(small_package):
        yield small_package / "dbt_project"


@pytest.fixture
def small_home(small_template: Settings, small_project: Path) -> Path:
    """Return a folder for databases that use the small project."""
    return small_template.home


MakeSmall = Callable[[str, Callable[[Database, Settings], None]], str]


@pytest.fixture(scope="session")
def make_small(server: str, shared_home: Path, small_template: Settings, small_package: Path) -> MakeSmall:
    """Clone a database with those tables and fill it, unless another process has done that; return its name."""

    def make(name: str, fill: Callable[[Database, Settings], None]) -> str:
        template = small_template.database_url.rsplit("/", 1)[1]
        with alone(shared_home, name) as made:
            if not made.exists():
                with (
                    used(small_package),
                    own_database(server, small_template.home, template, kept_as=name) as settings,
                    open_database(settings) as database,
                ):
                    parse_once(settings)
                    fill(database, settings)
                made.touch()
        return name

    return make


@pytest.fixture
def small_start(small_template: Settings) -> str:
    """Return the name of the database that each test clones; modules replace it by one with rows."""
    return small_template.database_url.rsplit("/", 1)[1]


@pytest.fixture
def small_settings(server: str, small_template: Settings, small_project: Path, small_start: str) -> Iterator[Settings]:
    """Return settings of the test's own database, in which those tables exist and are empty."""
    with own_database(server, small_template.home, small_start) as opened:
        parse_once(opened)
        yield opened


@pytest.fixture
def small(small_settings: Settings) -> Iterator[Database]:
    """Return that database, open."""
    with open_database(small_settings) as opened:
        yield opened


@pytest.fixture
def unfilled_settings(
    server: str, raw_template: str, small_template: Settings, small_project: Path
) -> Iterator[Settings]:
    """Return settings of a database without any run."""
    with own_database(server, small_template.home, raw_template) as opened:
        yield opened


@pytest.fixture
def unfilled(unfilled_settings: Settings) -> Iterator[Database]:
    """Return that database, open."""
    with open_database(unfilled_settings) as opened:
        yield opened


@pytest.fixture
def dbt(small_settings: Settings, small_project: Path) -> Dbt:
    """Run dbt on the small project as people do by hand; return its exit code and output."""
    return partial(run_dbt, small_settings.database_url, small_project)


@pytest.fixture(name="loader")
def small_loader(small_settings: Settings) -> Loader:
    """Run `loader` in this process, against the same database."""
    return loader_here(small_settings)


__all__ = ["small_package"]
