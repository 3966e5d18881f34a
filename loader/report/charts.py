"""Computes the shapes of a chart with a stacked bar for each day, which the template draws as SVG."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from loader.report.periods import Period

# A chart with more bars could not be read on a phone, so a bar then has several days.
_MOST_BARS = 92
_TICKS = 4

# The height of the drawing, and the width of a bar with its gap, in units of the drawing.
HEIGHT = 100.0
BAR_WIDTH = 10.0


@dataclass(frozen=True)
class Segment:
    """The part of a bar that one series has: its number, and its place from the top of the drawing."""

    series: str
    number: int
    top: float
    height: float


@dataclass(frozen=True)
class Bar:
    """The bar of one day, or of several days."""

    first_day: date
    last_day: date
    left: float
    segments: list[Segment]

    @property
    def total(self) -> int:
        """The sum of all series."""
        return sum(segment.number for segment in self.segments)


@dataclass(frozen=True)
class Chart:
    """A chart: its bars, the series that have a number, and the numbers of the axis with their places."""

    bars: list[Bar]
    series: list[str]
    ticks: list[tuple[int, float]]
    days_of_bar: int

    @property
    def width(self) -> float:
        """The width of the drawing."""
        return len(self.bars) * BAR_WIDTH


def stack_days(period: Period, series: Sequence[str], numbers: Mapping[tuple[str, date], int]) -> Chart:
    """Return the chart of a period.

    Args:
        period: The days, also those without a number.
        series: The names of the series, from the bottom of a bar to its top.
        numbers: The numbers by series and day.
    """
    days_of_bar = -(-period.days // _MOST_BARS)
    starts = [period.first_day + timedelta(n) for n in range(0, period.days, days_of_bar)]
    used = [name for name in series if any(number for (of, _), number in numbers.items() if of == name)]
    sums = []
    for start in starts:
        end = min(start + timedelta(days_of_bar - 1), period.last_day)
        days = [start + timedelta(n) for n in range((end - start).days + 1)]
        sums.append((start, end, [sum(numbers.get((name, day), 0) for day in days) for name in used]))
    ticks = _ticks(max((sum(each) for _, _, each in sums), default=0))
    top = ticks[-1]
    bars = [
        Bar(start, end, number * BAR_WIDTH, list(_stack(used, each, top)))
        for number, (start, end, each) in enumerate(sums)
    ]
    return Chart(bars, used, [(tick, HEIGHT - HEIGHT * tick / top) for tick in ticks], days_of_bar)


def _stack(series: Sequence[str], numbers: Sequence[int], top: int) -> Iterable[Segment]:
    bottom = HEIGHT
    for name, number in zip(series, numbers, strict=True):
        height = HEIGHT * number / top
        bottom -= height
        yield Segment(name, number, bottom, height)


def _ticks(largest: int) -> list[int]:
    """Return round numbers from 0 to at least the largest number of a bar."""
    step = 1
    while step * _TICKS < largest:
        # 1, 2, 5, 10, 20, 50, …
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return [step * n for n in range(max(-(-largest // step), 1) + 1)]
