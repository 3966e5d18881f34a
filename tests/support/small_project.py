"""A dbt project with three tables, for tests of processes around a run; a run takes a quarter of the time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import loader.transform.dbt
from tests.support.folders import ROOT

KEPT = ("email_delivered", "email_opened", "tracks")


@pytest.fixture(scope="session")
def small_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the whole package but few models, for processes with the folder in their path."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("loader", "migrations", "dbt_project"):
        ignored = shutil.ignore_patterns("__pycache__", "target", "logs")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    models = folder / "dbt_project" / "models" / "iterable"
    for path in models.glob("*.*"):
        if path.suffix != ".md" and path.stem not in KEPT:
            path.unlink()
    # The analyses read the marts.
    for left_out in ("models/marts", "analyses"):
        shutil.rmtree(folder / "dbt_project" / left_out)
    # These files name tables that are left out.
    tracks = yaml.safe_load((models / "tracks.yml").read_text())
    del tracks["models"][0]["data_tests"]
    (models / "tracks.yml").write_text(yaml.safe_dump(tracks, sort_keys=False))
    return folder


@contextmanager
def used(package: Path, *, by_children: bool = True) -> Iterator[None]:
    """Use that package's project instead of the whole project.

    Args:
        package: The folder of the package.
        by_children: Use it in child processes too, which then import the modules of that package.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader.transform.dbt, "bundled", lambda folder: package / folder)
        if by_children:
            patch.setenv("PYTHONPATH", str(package))
        yield
