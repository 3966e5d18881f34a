"""The checks of the marts' variables, as the macros of the dbt project make them."""

import json
import re
from collections.abc import Callable
from datetime import date
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import jinja2
import pytest
import yaml

from tests.support.folders import ROOT

PROJECT = ROOT / "dbt_project"
DEFAULTS = yaml.safe_load((PROJECT / "dbt_project.yml").read_text(encoding="utf-8"))["vars"]
MACROS = (PROJECT / "macros" / "mart_variables.sql").read_text(encoding="utf-8")
MODEL = {"name": "last_click", "position": "last", "touch": "click", "window_hours": 168}
ORDER = {"name": "order", "schema": "app", "table": "orders"}


class RefusedError(Exception):
    """The error of a macro."""


class ReturnedError(Exception):
    """The value that a macro returns."""


def query(statement: str) -> SimpleNamespace:
    """Answer the questions that the macros ask the database."""
    value = statement.partition("'")[2].partition("'")[0]
    try:
        found = ZoneInfo(value) if "is_time_zone" in statement else date.fromisoformat(value)
    except (ValueError, KeyError):
        found = None
    return SimpleNamespace(rows=[[found is not None]])


def check(**given: Any) -> None:
    """Check variables by the macros, with the defaults of the project for all others.

    Raises:
        RefusedError: A variable has a wrong value.
    """

    def refuse(message: str) -> None:
        raise RefusedError(message)

    def give_back(value: Any) -> None:
        raise ReturnedError(value)

    def to_json(value: Any, default: Any) -> Any:
        try:
            return json.dumps(value)
        except TypeError:
            return default

    def macro(name: str, source: str) -> Callable[..., Any]:
        template = environment.from_string(source)

        def call(*arguments: Any) -> Any:
            try:
                return getattr(template.module, name)(*arguments)
            except ReturnedError as returned:
                return returned.args[0]

        return call

    environment = jinja2.Environment(extensions=["jinja2.ext.do"], autoescape=False)  # noqa: S701 - no HTML
    environment.globals |= {
        "var": (DEFAULTS | given).__getitem__,
        "exceptions": SimpleNamespace(raise_compiler_error=refuse),
        "modules": SimpleNamespace(re=re),
        "return": give_back,
        "tojson": to_json,
        "run_query": query,
        "string_literal": lambda value: f"'{value}'",
        "execute": True,
    }
    for source in re.findall(r"{% macro .*?{% endmacro %}", MACROS, re.DOTALL):
        name = source.split()[2].partition("(")[0]
        environment.globals[name] = macro(name, source)
    environment.globals["check_mart_variables"]()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"marts_time_zone": "America/New_York", "machine_proxies": [], "transactional_channel_ids": [1, "2"]},
        {"conversion_events": [ORDER, ORDER | {"name": "visit"}], "conversion_lookback_hours": 0.5},
        {"attribution_models": [MODEL, MODEL | {"name": "b", "position": "linear", "touch": "send"}]},
        {"as_of_date": "2026-03-04", "default_currency": "EUR", "engagement_active_days": 1},
        {"as_of_date": date(2026, 3, 4)},
    ],
)
def test_right_values_pass(given: dict[str, Any]) -> None:
    """The defaults of the project do, too."""
    check(**given)


@pytest.mark.parametrize(
    ("name", "value", "shown", "remedy"),
    [
        ("marts_time_zone", "Nowhere", '"Nowhere"', "Give an IANA name"),
        ("marts_time_zone", 5, "5", "Give an IANA name"),
        ("marts_time_zone", None, "null", "Give an IANA name"),
        *(
            (name, value, shown, "Give a list")
            for name in (
                "machine_proxies",
                "transactional_channel_ids",
                "transactional_message_type_ids",
                "conversion_events",
                "attribution_models",
            )
            for value, shown in (("Apple", '"Apple"'), (5, "5"), ({"a": 1}, '{"a": 1}'), (None, "null"))
        ),
        ("transactional_channel_ids", [1, "x"], '"x"', "Give Iterable's numbers"),
        ("transactional_message_type_ids", [1.5], "1.5", "Give Iterable's numbers"),
        ("attribute_transactional", "yes", '"yes"', "Give one of both"),
        ("conversion_lookback_hours", 0, "0", "Give a number"),
        ("conversion_lookback_hours", "72", '"72"', "Give a number"),
        ("engagement_active_days", -1, "-1", "Give a number"),
        ("engagement_lapsing_days", True, "true", "Give a number"),
        ("engagement_lapsing_days", float("inf"), "Infinity", "Give a number"),
        ("default_currency", False, "false", "Give a currency in quotes"),
        ("as_of_date", "today", '"today"', "leave the variable out"),
        ("as_of_date", "2026-02-30", '"2026-02-30"', "leave the variable out"),
        ("conversion_events", [ORDER | {"table": None}], '"table": null', "Give all three"),
        ("conversion_events", ["order"], '"order"', "Give all three"),
        ("conversion_events", [ORDER, ORDER], '"name": "order"', "a name of its own"),
        ("attribution_models", [{}], "{}", "Give each model a name"),
        ("attribution_models", [MODEL | {"position": "middle"}], '"middle"', "first, last or linear"),
        ("attribution_models", [MODEL | {"touch": "look"}], '"look"', "click, open or send"),
        ("attribution_models", [MODEL | {"window_hours": 0}], '"window_hours": 0', "Give window_hours"),
        ("attribution_models", [{**MODEL, "window_hours": "72"}], '"window_hours": "72"', "Give window_hours"),
        ("attribution_models", [MODEL, MODEL], '"name": "last_click"', "a name of its own"),
        ("attribution_models", [], "last_click", "Give one of"),
        ("primary_attribution_model", "best", '"best"', "Give one of last_click"),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: Any, shown: str, remedy: str) -> None:
    """The error names the variable, the value and a remedy."""
    with pytest.raises(RefusedError) as refused:
        check(**{name: value})
    message = str(refused.value)
    variable = "primary_attribution_model" if value == [] else name
    assert message.startswith(f"The variable {variable} has a value that is ")
    assert shown in message
    assert remedy in message
    assert message.endswith(" The marts stay as they are.")


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_variable_is_checked(name: str) -> None:
    """A value of no use is refused for each variable of the project."""
    with pytest.raises(RefusedError, match=name):
        check(**{name: SimpleNamespace()})
