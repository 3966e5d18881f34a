"""The archive for Superset: it names only columns and assets that exist, and it is the same each time."""

import io
import json
import re
import zipfile
from dataclasses import replace
from typing import Any

import pytest
import yaml

from loader.bi.assets import read_assets, read_mart
from loader.bi.bundle import Connection, asset_uuid, make_files, zip_files
from loader.bi.dashboards import COLUMNS

ASSETS = read_assets()
CONNECTION = Connection(
    url="postgresql://bi:secret@db.example:5432/warehouse",
    catalog="warehouse",
    source="Iterable",
    source_schema="iterable",
    marts_schema="iterable_marts",
    model="last_click",
    currency="USD",
)
FILES = make_files(ASSETS, CONNECTION)
CHARTS = {name: content for name, content in FILES.items() if name.startswith("charts/")}
DATASETS = {content["uuid"]: content for name, content in FILES.items() if name.startswith("datasets/")}
DASHBOARDS = {name: content for name, content in FILES.items() if name.startswith("dashboards/")}

CHART_KEYS = set("key slice_name description width viz_type dataset filters having ignores params".split())
# The words of the expressions that are no columns.
SQL_WORDS = set(
    """
    and as case count date_trunc distinct else end filter in is max min not null nullif numeric or sum then to_char when
    where
    """.split()
)
# Counts of distinct people, which a metric must not add.
PEOPLE = re.compile(r"(?:sum|avg)\(\s*(?:unique_\w+|reached_users|engaged_users|converting_users|\w+_rate)\b")


def columns_of(dataset: dict[str, Any]) -> set[str]:
    """Return the columns of a dataset."""
    return {column["column_name"] for column in dataset["columns"]}


def expressions(dataset: dict[str, Any]) -> list[str]:
    """Return the SQL of a dataset's metrics and calculated columns."""
    calculated = [column["expression"] for column in dataset["columns"] if "expression" in column]
    return [*calculated, *(metric["expression"] for metric in dataset["metrics"])]


def words(expression: str) -> set[str]:
    """Return the names of an expression that are no words of SQL."""
    without_texts = re.sub(r"'[^']*'", "", expression)
    return set(re.findall(r"[a-z_][a-z0-9_]*", without_texts)) - SQL_WORDS


def parts(position: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parts of a layout, which also has its version."""
    return {name: part for name, part in position.items() if isinstance(part, dict)}


def chart_numbers(position: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of the charts in a layout, by UUID."""
    charts = [part["meta"] for part in parts(position).values() if part["type"] == "CHART"]
    return {meta["uuid"]: meta["chartId"] for meta in charts}


def test_a_dataset_has_the_columns_of_its_mart_with_their_descriptions() -> None:
    """A calculated column comes from the file of the dataset."""
    for dataset in DATASETS.values():
        schema, name = dataset["table_name"].split(".")
        mart = read_mart(name)
        assert dataset["sql"] == f'select * from "{schema}"."{name}"'
        described = {column["name"]: column["description"] for column in mart["columns"]}
        stored = {
            column["column_name"]: column["description"] for column in dataset["columns"] if "expression" not in column
        }
        assert stored == described
        assert dataset["description"] == mart["description"]


def test_the_time_axis_of_a_dataset_is_a_column_of_time() -> None:
    """Superset would otherwise choose a column by itself."""
    for dataset in DATASETS.values():
        times = {column["column_name"] for column in dataset["columns"] if column["is_dttm"]}
        assert dataset["main_dttm_col"] in {*times, None}


def test_every_expression_names_columns_of_its_mart() -> None:
    """The yml of the mart has the columns."""
    for dataset in DATASETS.values():
        stored = {column["column_name"] for column in dataset["columns"] if "expression" not in column}
        for expression in expressions(dataset):
            assert words(expression) <= stored, expression


def test_no_metric_adds_people_or_averages_a_rate() -> None:
    """One person may be in many rows. docs/metrics.md has the formulas."""
    found = [text for dataset in DATASETS.values() for text in expressions(dataset) if PEOPLE.search(text)]
    assert found == []


@pytest.mark.parametrize(
    ("expression", "is_wrong"),
    [
        ("sum(unique_human_opens)", True),
        ("avg(human_open_rate)", True),
        ("sum( reached_users )", True),
        ("sum(human_opens)", False),
        ("count(distinct recipient_key)", False),
    ],
)
def test_the_pattern_finds_a_metric_that_adds_people_or_averages_a_rate(expression: str, *, is_wrong: bool) -> None:
    """The test above can fail."""
    assert bool(PEOPLE.search(expression)) is is_wrong


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_names_columns_and_metrics_of_its_dataset(name: str) -> None:
    """The stored query has the same names as the parameters."""
    chart = CHARTS[name]
    dataset = DATASETS[chart["dataset_uuid"]]
    columns, metrics = columns_of(dataset), {metric["metric_name"] for metric in dataset["metrics"]}
    parameters = chart["params"]
    used = [*parameters.get("all_columns", []), *parameters.get("groupby", [])]
    used += [json.loads(each)[0] for each in parameters.get("order_by_cols", [])]
    used += [each["subject"] for each in parameters["adhoc_filters"] if each["expressionType"] == "SIMPLE"]
    used += [parameters[key] for key in ("x_axis",) if key in parameters]
    assert set(used) <= columns
    shown = [*parameters.get("metrics", []), *(parameters[key] for key in ("metric",) if key in parameters)]
    shown += [parameters[key] for key in ("series_limit_metric",) if key in parameters]
    assert set(shown) <= metrics
    assert parameters.get("x_axis_sort", parameters.get("x_axis")) in {*columns, *shown, None}
    having = [each["sqlExpression"] for each in parameters["adhoc_filters"] if each["clause"] == "HAVING"]
    assert words(" ".join(having)) <= columns
    assert shown or parameters.get("all_columns")

    [query] = json.loads(chart["query_context"])["queries"]
    labels = [each["label"] if isinstance(each, dict) else each for each in query["columns"]]
    axis = [parameters["x_axis"]] if "x_axis" in parameters else []
    assert labels == parameters.get("all_columns", [*axis, *parameters.get("groupby", [])])
    assert (query["metrics"] or []) == [each for each in shown if each != parameters.get("series_limit_metric")]


def test_a_chart_of_a_mart_with_a_time_axis_obeys_the_time_filter() -> None:
    """A dashboard's filter replaces the value of this condition."""
    for chart in CHARTS.values():
        time_axis = DATASETS[chart["dataset_uuid"]]["main_dttm_col"]
        conditions = chart["params"]["adhoc_filters"]
        filtered = [each["subject"] for each in conditions if each.get("operator") == "TEMPORAL_RANGE"]
        assert filtered == ([time_axis] if time_axis else [])


def test_a_chart_has_a_question_as_description_and_no_unknown_key() -> None:
    """A comma in a YAML mapping would make a part of a text a key."""
    for key, chart in ASSETS.charts().items():
        assert chart.keys() <= CHART_KEYS, key
        assert chart["description"].endswith("?"), key


def test_a_dashboard_shows_charts_that_exist_and_every_chart_is_shown_once() -> None:
    """The layout names a chart by its UUID, and each part of the layout has its parent."""
    shown: list[str] = []
    for dashboard in DASHBOARDS.values():
        position = dashboard["position"]
        shown += chart_numbers(position)
        for name, part in parts(position).items():
            for child in part.get("children", []):
                assert name in position[child]["parents"]
    assert sorted(shown) == sorted(chart["uuid"] for chart in CHARTS.values())


def test_a_row_fills_the_width_of_a_dashboard() -> None:
    """Superset's grid has twelve columns."""
    for name, dashboard in ASSETS.dashboards.items():
        for row in dashboard["rows"]:
            assert sum(chart["width"] for chart in row["charts"]) == COLUMNS, name


def test_a_filter_offers_the_values_of_a_column_that_exists() -> None:
    """A filter of values names a dataset, its column and, for its first value, a metric."""
    for dashboard in DASHBOARDS.values():
        for each in dashboard["metadata"]["native_filter_configuration"]:
            [target] = each["targets"]
            if each["filterType"] == "filter_time":
                assert target == {}
                continue
            dataset = DATASETS[target["datasetUuid"]]
            assert target["column"]["name"] in columns_of(dataset)
            assert each.get("sortMetric") in {None, *(metric["metric_name"] for metric in dataset["metrics"])}


def test_the_model_filter_begins_with_the_primary_model_and_excludes_the_comparison() -> None:
    """The chart that compares the models must not have one model only."""
    revenue = DASHBOARDS["dashboards/revenue.yaml"]
    filters = {each["name"]: each for each in revenue["metadata"]["native_filter_configuration"]}
    model = filters["Attribution model"]
    assert model["defaultDataMask"]["filterState"]["value"] == ["last_click"]
    numbers = chart_numbers(revenue["position"])
    assert model["scope"]["excluded"] == [numbers[asset_uuid("iterable", "chart", "revenue_by_model")]]


def test_the_filter_of_the_currency_begins_with_the_currency_of_the_marts() -> None:
    """No filter waits for a first value of its own, because the charts of an empty warehouse would never be drawn."""
    for currency, state in (("USD", {"value": ["USD"], "label": "USD"}), (None, {})):
        files = make_files(ASSETS, replace(CONNECTION, currency=currency))
        dashboards = [content for name, content in files.items() if name.startswith("dashboards/")]
        filters = [each for made in dashboards for each in made["metadata"]["native_filter_configuration"]]
        assert [each["defaultDataMask"]["filterState"] for each in filters if each["name"] == "Currency"] == [state]
        assert not any(each.get("requiredFirst") for each in filters)
        assert not any(each["controlValues"].get("defaultToFirstItem") for each in filters)


def test_equal_assets_make_equal_bytes() -> None:
    """So a repeated import changes nothing. The archive has Superset's layout."""
    archive = zip_files(FILES)
    assert archive == zip_files(make_files(read_assets(), CONNECTION))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert {name.split("/", 1)[1] for name in opened.namelist()} == FILES.keys()
        assert yaml.safe_load(opened.read("iterable_warehouse/metadata.yaml")) == {"version": "1.0.0"}


def test_two_sources_share_no_asset() -> None:
    """A UUID depends on the schema of the source, and so does the address of a dashboard."""
    shop = replace(CONNECTION, source="Shop", source_schema="shop_2", marts_schema="shop_2_marts")
    other = make_files(ASSETS, shop)
    pairs = [(FILES[name], other[name]) for name in FILES if name != "metadata.yaml"]
    for one, two in pairs:
        assert one["uuid"] != two["uuid"]
        assert one.get("slug", 1) != two.get("slug", 2)
    assert other["databases/warehouse.yaml"]["database_name"] == "Warehouse: Shop"
    assert other["dashboards/channels.yaml"]["slug"] == "shop-2-channels"
    assert {each["schema"] for name, each in other.items() if name.startswith("datasets/")} == {"shop_2_marts"}


@pytest.mark.parametrize("source", ['it\'s "quoted": {{ x }}', "☕" * 300, "a: b # c\nd"])
def test_any_source_name_gives_valid_yaml_and_a_short_connection_name(source: str) -> None:
    """Superset keeps 250 characters of the name of a connection."""
    archive = zip_files(make_files(ASSETS, replace(CONNECTION, source=source)))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        stored = yaml.safe_load(opened.read("iterable_warehouse/databases/warehouse.yaml"))["database_name"]
    assert stored.removeprefix("Warehouse: ").rstrip("…") == source[:200]
    assert len(stored) <= 250
