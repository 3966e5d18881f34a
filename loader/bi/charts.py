"""Makes the parameters and the query of a chart.

Superset's pages compute the query of a chart from its parameters. Its API and its scheduled reports take the stored
query, so a chart has both.
"""

import json

from loader.bi.assets import Config

_ANY_TIME = "No filter"
_TIMESERIES = "echarts_timeseries"

# The formats of numbers in tables of rows, by the ending of the column's name or by its type in the mart.
_RATE = ".1%"
_FORMATS = {"bigint": ",d", "numeric": ",.2f"}


def make_parameters(chart: Config, defaults: Config, time_column: str | None, types: dict[str, str]) -> Config:
    """Return the parameters of a chart, as Superset's pages read them.

    Args:
        chart: The chart of a dashboard's file.
        defaults: The parameters that all charts of this type share.
        time_column: The column that the time filter of a dashboard applies to, or None.
        types: The types of the mart's columns, by name.
    """
    conditions = [*chart.get("filters", [])]
    if time_column:
        # A dashboard's time filter replaces the value of this condition, and applies to no chart without it.
        conditions.append([time_column, "TEMPORAL_RANGE", _ANY_TIME])
    parameters = {**defaults, **chart["params"], "viz_type": chart["viz_type"]}
    parameters["adhoc_filters"] = [_adhoc_filter(*condition) for condition in conditions]
    if having := chart.get("having"):
        parameters["adhoc_filters"].append(
            {"clause": "HAVING", "expressionType": "SQL", "sqlExpression": having, "subject": None}
        )
    if columns := parameters.get("all_columns"):
        formats = {name: _RATE if name.endswith("_rate") else _FORMATS.get(types[name]) for name in columns}
        parameters["column_config"] = {
            name: {"d3NumberFormat": shown, "d3SmallNumberFormat": shown} for name, shown in formats.items() if shown
        } | parameters.get("column_config", {})
    return parameters


def _adhoc_filter(column: str, operator: str, value: str | None = None) -> Config:
    return {
        "clause": "WHERE",
        "comparator": value,
        "expressionType": "SIMPLE",
        "operator": operator,
        "subject": column,
    }


def make_query_context(parameters: Config) -> str:
    """Return the query of a chart, as Superset's API reads it."""
    context = {
        # The import sets the dataset of the query.
        "datasource": {"id": 0, "type": "table"},
        "force": False,
        "queries": [_make_query(parameters)],
        "form_data": parameters,
        "result_format": "json",
        "result_type": "full",
    }
    return json.dumps(context, sort_keys=True)


def _make_query(parameters: Config) -> Config:
    metrics = [parameters["metric"]] if "metric" in parameters else parameters.get("metrics", [])
    query: Config = {
        "columns": [*_axis(parameters), *parameters.get("groupby", [])],
        "metrics": metrics,
        "orderby": [[metrics[0], False]] if metrics else [],
        "filters": [
            {"col": each["subject"], "op": each["operator"], "val": each["comparator"]}
            for each in parameters["adhoc_filters"]
            if each["expressionType"] == "SIMPLE"
        ],
        "extras": {"having": _having(parameters), "where": ""},
        "row_limit": parameters.get("row_limit"),
    }
    if parameters.get("query_mode") == "raw":
        query["columns"] = parameters["all_columns"]
        query["orderby"] = [json.loads(each) for each in parameters["order_by_cols"]]
        # Superset groups by the columns of a query that has a list of metrics.
        query["metrics"] = None
    if parameters["viz_type"].startswith(_TIMESERIES):
        query["series_columns"] = parameters.get("groupby", [])
        query["series_limit"] = parameters.get("limit", 0)
        query["series_limit_metric"] = parameters.get("series_limit_metric")
    return query


def _having(parameters: Config) -> str:
    return " and ".join(
        f"({each['sqlExpression']})" for each in parameters["adhoc_filters"] if each["clause"] == "HAVING"
    )


def _axis(parameters: Config) -> list[Config]:
    """Return the column of the horizontal axis."""
    if "x_axis" not in parameters:
        return []
    name = parameters["x_axis"]
    return [{"columnType": "BASE_AXIS", "expressionType": "SQL", "label": name, "sqlExpression": name}]
