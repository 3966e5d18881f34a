"""Makes the ZIP file that Superset imports: the connection, datasets, charts and dashboards of one source."""

import io
import uuid
import zipfile
from dataclasses import dataclass

import yaml
from psycopg import sql

from loader.bi.assets import Assets, Config, read_mart
from loader.bi.charts import make_parameters, make_query_context
from loader.bi.dashboards import make_filter, make_position

DATABASE_FILE = "databases/warehouse.yaml"

_ROOT = "iterable_warehouse"
_VERSION = "1.0.0"
_NAMESPACE = uuid.UUID("5f0c6c0e-2b0f-4d0e-9d3c-6a1a3c0b7f42")
# Times in the archive would make each file different. ZIP has no earlier time.
_TIME = (1980, 1, 1, 0, 0, 0)
# Superset keeps 250 characters of a connection's name, and 500 of a dashboard's title.
_NAME_CHARACTERS = 200
# The name of a type in PostgreSQL, where Superset's differs.
_TYPES = {"timestamp with time zone": "TIMESTAMP WITH TIME ZONE", "integer": "INTEGER"}
_EVERY_ROW = sql.SQL("select * from {}")
_TIME_TYPES = {"date", "timestamp with time zone"}
# libyaml writes an archive in a sixth of the time that Python takes, and is missing where PyYAML was built without it.
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Connection:
    """The marts of one source, and the way in which Superset reaches them.

    Attributes:
        url: The URL of a reader.
        catalog: The name of the database.
        source: The source's name for people.
        source_schema: The schema of the source's tables. It decides all UUIDs.
        marts_schema: The schema of the marts.
        model: The attribution model that dashboards show at first.
        currency: The currency that dashboards show at first; None if there is no conversion yet.
    """

    url: str
    catalog: str
    source: str
    source_schema: str
    marts_schema: str
    model: str
    currency: str | None


def make_files(assets: Assets, connection: Connection) -> dict[str, Config]:
    """Return the content of the files that Superset imports, by path."""
    files: dict[str, Config] = {"metadata.yaml": {"version": _VERSION}}
    files[DATABASE_FILE] = _database(assets, connection)
    for name, dataset in assets.datasets.items():
        files[f"datasets/warehouse/{name}.yaml"] = _dataset(name, dataset, assets.labels, connection)
    for key, chart in assets.charts().items():
        files[f"charts/{key}.yaml"] = _chart(key, chart, assets, connection)
    for name, dashboard in assets.dashboards.items():
        files[f"dashboards/{name}.yaml"] = _dashboard(name, dashboard, assets, connection)
    return files


def zip_files(files: dict[str, Config]) -> bytes:
    """Return the files as a ZIP archive; equal files make equal bytes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path, content in files.items():
            text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
            entry = zipfile.ZipInfo(f"{_ROOT}/{path}", _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(entry, text)
    return archive.getvalue()


def asset_uuid(source_schema: str, kind: str, name: str) -> str:
    """Return the UUID of an asset, which is the same in each import of a source."""
    return str(uuid.uuid5(_NAMESPACE, f"{source_schema}/{kind}/{name}"))


def _database(assets: Assets, connection: Connection) -> Config:
    return {
        "database_name": f"Warehouse: {_short(connection.source)}",
        "sqlalchemy_uri": connection.url,
        **assets.database,
        "uuid": asset_uuid(connection.source_schema, "database", "warehouse"),
        "version": _VERSION,
    }


def _dataset(name: str, dataset: Config, labels: dict[str, str], connection: Connection) -> Config:
    mart = read_mart(name)
    columns = [_column(each, labels) for each in mart["columns"]]
    columns += [_with_flags(each) for each in dataset.get("calculated_columns", [])]
    return {
        # A Superset with its metadata in SQLite admits the name of a table once, and two sources have the same tables.
        # So a dataset is a query with a name of its own.
        "table_name": f"{connection.marts_schema}.{name}",
        "sql": _EVERY_ROW.format(sql.Identifier(connection.marts_schema, name)).as_string(None),
        "main_dttm_col": dataset.get("main_dttm_col"),
        "description": mart["description"],
        "catalog": connection.catalog,
        "schema": connection.marts_schema,
        "uuid": asset_uuid(connection.source_schema, "dataset", name),
        "columns": columns,
        "metrics": dataset.get("metrics", []),
        "version": _VERSION,
        "database_uuid": asset_uuid(connection.source_schema, "database", "warehouse"),
    }


def _column(column: Config, labels: dict[str, str]) -> Config:
    name, kind = column["name"], column["data_type"]
    return _with_flags(
        {
            "column_name": name,
            "verbose_name": labels.get(name) or name.replace("_", " ").capitalize(),
            "is_dttm": kind in _TIME_TYPES,
            "type": _TYPES.get(kind, kind.upper()),
            "description": column["description"],
        }
    )


def _with_flags(column: Config) -> Config:
    return {"is_dttm": False, **column, "is_active": True, "groupby": True, "filterable": True}


def _chart(key: str, chart: Config, assets: Assets, connection: Connection) -> Config:
    time_column = assets.datasets[chart["dataset"]].get("main_dttm_col")
    types = {column["name"]: column["data_type"] for column in read_mart(chart["dataset"])["columns"]}
    parameters = make_parameters(chart, assets.chart_defaults[chart["viz_type"]], time_column, types)
    return {
        "slice_name": chart["slice_name"],
        "description": chart["description"],
        "viz_type": chart["viz_type"],
        "params": parameters,
        "query_context": make_query_context(parameters),
        "uuid": asset_uuid(connection.source_schema, "chart", key),
        "version": _VERSION,
        "dataset_uuid": asset_uuid(connection.source_schema, "dataset", chart["dataset"]),
    }


def _dashboard(name: str, dashboard: Config, assets: Assets, connection: Connection) -> Config:
    title = f"{_short(connection.source)}: {dashboard['dashboard_title']}"
    placed = [chart for row in dashboard["rows"] for chart in row["charts"]]
    # Superset replaces these numbers by its own ids.
    numbers = {chart["key"]: number for number, chart in enumerate(placed, 1)}
    charts = {key: (number, asset_uuid(connection.source_schema, "chart", key)) for key, number in numbers.items()}
    filters = []
    for each in dashboard["filters"]:
        described = dict(assets.filters[each])
        for variable, value in (("$model", connection.model), ("$currency", connection.currency)):
            if described.get("default") == variable:
                described["default"] = value
        dataset = described.get("dataset")
        dataset_uuid = asset_uuid(connection.source_schema, "dataset", dataset) if dataset else None
        excluded = [numbers[chart["key"]] for chart in placed if each in chart.get("ignores", [])]
        filters.append(make_filter(each, described, dataset_uuid, excluded))
    return {
        "dashboard_title": title,
        "description": dashboard["description"],
        "slug": f"{connection.source_schema}-{dashboard['slug']}".replace("_", "-"),
        "uuid": asset_uuid(connection.source_schema, "dashboard", name),
        "position": make_position(title, dashboard["introduction"], dashboard["rows"], charts),
        "metadata": {
            "color_scheme": "supersetColors",
            "label_colors": assets.label_colors,
            "cross_filters_enabled": True,
            "filter_bar_orientation": "HORIZONTAL",
            "native_filter_configuration": filters,
        },
        "published": True,
        "version": _VERSION,
    }


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else f"{name[:_NAME_CHARACTERS]}…"
