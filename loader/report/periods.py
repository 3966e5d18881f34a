"""Defines the period of a report, and the period before it."""

from dataclasses import dataclass
from datetime import date, timedelta

from loader.errors import UsageError


@dataclass(frozen=True)
class Period:
    """Whole days, the first and the last included."""

    first_day: date
    last_day: date

    @property
    def days(self) -> int:
        """The number of days."""
        return (self.last_day - self.first_day).days + 1

    @property
    def before(self) -> "Period":
        """The period of the same length that ends on the day before."""
        return Period(self.first_day - timedelta(self.days), self.first_day - timedelta(1))


def choose_period(first_day: date | None, last_day: date | None, days: int, newest_day: date) -> Period:
    """Return the period that a person asks for.

    Args:
        first_day: The first day; None for a period of `days`.
        last_day: The last day; None for the newest day.
        days: The length of a period without a first day.
        newest_day: The last day that has data.

    Raises:
        UsageError: The period ends before it begins, or there are no such days.
    """
    last_day = last_day or (max(newest_day, first_day) if first_day else newest_day)
    try:
        period = Period(first_day or last_day - timedelta(days - 1), last_day)
        _ = period.before
    except OverflowError:
        raise UsageError("The period before this one would begin before the year 1. Choose a shorter period.") from None
    if period.days < 1:
        raise UsageError(f"The period ends on {last_day}, before it begins on {first_day}. Exchange the two days.")
    return period
