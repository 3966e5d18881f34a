"""The period of a report, and the period before it."""

from datetime import date

import pytest

from loader.errors import UsageError
from loader.report.periods import Period, choose_period

NEWEST = date(2026, 3, 31)


@pytest.mark.parametrize(
    ("first", "last", "days", "period"),
    [
        (None, None, 30, Period(date(2026, 3, 2), NEWEST)),
        (None, None, 1, Period(NEWEST, NEWEST)),
        (None, date(2026, 3, 10), 7, Period(date(2026, 3, 4), date(2026, 3, 10))),
        (date(2026, 3, 20), None, 30, Period(date(2026, 3, 20), NEWEST)),
        (date(2026, 4, 2), None, 30, Period(date(2026, 4, 2), date(2026, 4, 2))),
        (date(2026, 3, 1), date(2026, 3, 5), 30, Period(date(2026, 3, 1), date(2026, 3, 5))),
    ],
)
def test_a_period_ends_with_the_newest_day_unless_days_are_given(
    first: date | None, last: date | None, days: int, period: Period
) -> None:
    """Without any day, it is the last days that have data."""
    assert choose_period(first, last, days, NEWEST) == period


def test_the_period_before_is_as_long_and_ends_the_day_before() -> None:
    """Both ends belong to a period, so no day belongs to both."""
    period = Period(date(2026, 3, 1), date(2026, 3, 31))
    assert period.days == period.before.days == 31
    assert period.before == Period(date(2026, 1, 29), date(2026, 2, 28))


@pytest.mark.parametrize(
    ("first", "last"), [(date(2026, 3, 2), date(2026, 3, 1)), (date(1, 1, 2), NEWEST), (None, date(1, 1, 10))]
)
def test_an_impossible_period_is_refused(first: date | None, last: date | None) -> None:
    """It ends before it begins, or there is no period before it."""
    with pytest.raises(UsageError, match=r"period"):
        choose_period(first, last, 30, NEWEST)
