"""Makes the layout and the filters of a dashboard."""

from typing import Any

from loader.bi.assets import Config

# The charts of Superset's grid stand in rows of this many columns.
COLUMNS = 12

_INTRODUCTION_HEIGHT = 9


def make_position(title: str, introduction: str, rows: list[Config], charts: dict[str, tuple[int, str]]) -> Config:
    """Return the layout of a dashboard: a text in the first row, then rows of charts.

    Args:
        title: The title of the dashboard.
        introduction: The text for the reader of the dashboard.
        rows: The rows of the dashboard's file.
        charts: The number and the UUID of each chart of the dashboard, by key.
    """
    grid = ["ROOT_ID", "GRID_ID"]
    text_row = _row("ROW-introduction", grid, ["MARKDOWN-introduction"])
    text = {
        "type": "MARKDOWN",
        "id": "MARKDOWN-introduction",
        "children": [],
        "parents": [*grid, text_row["id"]],
        "meta": {"code": introduction, "height": _INTRODUCTION_HEIGHT, "width": COLUMNS},
    }
    layout: list[dict[str, Any]] = [text_row, text]
    for number, row in enumerate(rows, 1):
        laid = _row(f"ROW-{number}", grid, [f"CHART-{chart['key']}" for chart in row["charts"]])
        layout.append(laid)
        for chart in row["charts"]:
            chart_id, uuid = charts[chart["key"]]
            layout.append(
                {
                    "type": "CHART",
                    "id": f"CHART-{chart['key']}",
                    "children": [],
                    "parents": [*grid, laid["id"]],
                    "meta": {
                        "chartId": chart_id,
                        "uuid": uuid,
                        "sliceName": chart["slice_name"],
                        "height": row["height"],
                        "width": chart["width"],
                    },
                }
            )
    rows_in_grid = [each["id"] for each in layout if each["type"] == "ROW"]
    return {
        "DASHBOARD_VERSION_KEY": "v2",
        "ROOT_ID": {"type": "ROOT", "id": "ROOT_ID", "children": ["GRID_ID"]},
        "GRID_ID": {"type": "GRID", "id": "GRID_ID", "children": rows_in_grid, "parents": ["ROOT_ID"]},
        "HEADER_ID": {"type": "HEADER", "id": "HEADER_ID", "meta": {"text": title}},
        **{each["id"]: each for each in layout},
    }


def _row(identifier: str, parents: list[str], children: list[str]) -> Config:
    meta = {"background": "BACKGROUND_TRANSPARENT"}
    return {"type": "ROW", "id": identifier, "parents": parents, "children": children, "meta": meta}


def make_filter(name: str, described: Config, dataset_uuid: str | None, excluded: list[int]) -> Config:
    """Return a filter of a dashboard.

    Args:
        name: The name of the filter in its file.
        described: The filter of that file.
        dataset_uuid: The dataset whose values the filter offers; None for a filter of time.
        excluded: The numbers of the charts that the filter does not apply to.
    """
    default = described.get("default")
    target: Config = {}
    form_data: Config = {}
    if described["type"] == "filter_time":
        form_data = {"time_range": default}
    else:
        target = {"column": {"name": described["column"]}, "datasetUuid": dataset_uuid}
    state: Config = {"value": default} if default else {}
    if default and target:
        form_data = {"filters": [{"col": described["column"], "op": "IN", "val": [default]}]}
        state = {"value": [default], "label": default}
    controls: Config = {"enableEmptyFilter": described.get("required", False)}
    if described["type"] == "filter_select":
        controls |= {
            # Superset's charts would wait for the first value for ever if the column has no value.
            "defaultToFirstItem": False,
            "multiSelect": described.get("multiple", False),
            "searchAllOptions": False,
            "inverseSelection": False,
        }
    made: Config = {
        "id": f"NATIVE_FILTER-{name}",
        "type": "NATIVE_FILTER",
        "filterType": described["type"],
        "name": described["name"],
        "description": described.get("description", ""),
        "targets": [target],
        "defaultDataMask": {"extraFormData": form_data, "filterState": state, "ownState": {}},
        "controlValues": controls,
        "cascadeParentIds": [],
        "scope": {"rootPath": ["ROOT_ID"], "excluded": excluded},
    }
    if "most_first_by" in described:
        controls["sortAscending"] = False
        made["sortMetric"] = described["most_first_by"]
    return made
