"""Reads the assets of Superset that ship with the package: datasets on the marts, charts, dashboards and filters.

The folder `superset` beside this module has a file for each dataset and each dashboard. A dashboard lists its charts in
rows. Names of keys are Superset's own where Superset has such a key. The columns of a dataset and their descriptions
come from the yml of the mart, so each column is described once.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from loader.postgres.database import bundled

_FOLDER = Path(__file__).parent / "superset"

Config = dict[str, Any]

# libyaml reads a file in a sixth of the time that Python takes, and is missing where PyYAML was built without it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Assets:
    """The assets as their files describe them.

    Attributes:
        database: The options of the connection.
        datasets: The datasets, by the name of their mart.
        dashboards: The dashboards, by the name of their file.
        chart_defaults: The parameters that all charts of a type share, by type.
        filters: The filters of dashboards, by name.
        labels: The labels of columns, by name.
        label_colors: The colours of values and metrics, by their text in a legend.
    """

    database: Config
    datasets: dict[str, Config]
    dashboards: dict[str, Config]
    chart_defaults: dict[str, Config]
    filters: dict[str, Config]
    labels: dict[str, str]
    label_colors: dict[str, str]

    def charts(self) -> dict[str, Config]:
        """Return all charts, by their keys."""
        return {
            chart["key"]: chart
            for dashboard in self.dashboards.values()
            for row in dashboard["rows"]
            for chart in row["charts"]
        }


def read_assets() -> Assets:
    """Return the assets of the package."""
    return Assets(
        database=_read(_FOLDER / "database.yaml"),
        datasets={path.stem: _read(path) for path in sorted((_FOLDER / "datasets").glob("*.yaml"))},
        dashboards={path.stem: _read(path) for path in sorted((_FOLDER / "dashboards").glob("*.yaml"))},
        chart_defaults=_read(_FOLDER / "chart_defaults.yaml"),
        filters=_read(_FOLDER / "filters.yaml"),
        labels=_read(_FOLDER / "labels.yaml"),
        label_colors=_read(_FOLDER / "label_colors.yaml"),
    )


@cache
def read_mart(name: str) -> Config:
    """Return the description of a mart and of its columns, as dbt's yml has them."""
    path = bundled("dbt_project") / "models" / "marts" / f"{name}.yml"
    [model] = _read(path)["models"]
    found: Config = model
    return found


def _read(path: Path) -> Config:
    found: Config = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    return found
