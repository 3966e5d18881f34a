"""The shapes of the charts of a report."""

from datetime import date, timedelta

import pytest

from loader.report.charts import HEIGHT, stack_days
from loader.report.periods import Period

FIRST = date(2026, 3, 1)
WEEK = Period(FIRST, date(2026, 3, 7))


def test_the_segments_of_a_bar_stand_on_each_other() -> None:
    """The height of a segment is its share of the top of the axis."""
    chart = stack_days(WEEK, ["email", "sms", "push"], {("email", FIRST): 300, ("push", FIRST): 100})
    assert [tick for tick, _ in chart.ticks] == [0, 100, 200, 300, 400]
    assert [(each.series, each.number, each.top, each.height) for each in chart.bars[0].segments] == [
        ("email", 300, 25.0, 75.0),
        ("push", 100, 0.0, 25.0),
    ]
    assert chart.bars[0].total == 400
    assert chart.series == ["email", "push"]


def test_each_day_has_a_bar_also_without_numbers() -> None:
    """A day on which nothing was sent is a gap and not left out."""
    chart = stack_days(WEEK, ["email"], {("email", FIRST + timedelta(6)): 5})
    assert [bar.total for bar in chart.bars] == [0, 0, 0, 0, 0, 0, 5]
    assert chart.days_of_bar == 1
    assert chart.width == chart.bars[-1].left * 7 / 6


def test_a_long_period_has_several_days_in_a_bar() -> None:
    """No day is lost, and the last bar may have fewer days."""
    year = Period(FIRST, FIRST + timedelta(364))
    chart = stack_days(year, ["email"], {("email", FIRST + timedelta(n)): 1 for n in range(365)})
    assert chart.days_of_bar == 4
    assert len(chart.bars) == 92
    assert sum(bar.total for bar in chart.bars) == 365
    assert (chart.bars[-1].first_day, chart.bars[-1].last_day) == (year.last_day, year.last_day)


@pytest.mark.parametrize("largest", [0, 1, 3, 4, 5, 9, 99, 1_001, 123_456_789])
def test_the_axis_has_few_round_numbers_up_to_the_largest_bar(largest: int) -> None:
    """No bar leaves the drawing, and the largest bar uses more than half of it."""
    chart = stack_days(WEEK, ["email"], {("email", FIRST): largest})
    ticks = [tick for tick, _ in chart.ticks]
    assert 2 <= len(ticks) <= 5
    assert largest <= ticks[-1]
    assert largest * 2 >= ticks[-1] or largest == 0
    assert {str(tick).rstrip("0") for tick in ticks[1:2]} <= {"1", "2", "5"}
    assert [place for _, place in chart.ticks] == [HEIGHT - HEIGHT * tick / ticks[-1] for tick in ticks]
