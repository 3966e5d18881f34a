"""Iterable's formats of times: each is read, and other text is no error."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.events.timestamps import iso_text, read_moment

SECOND = datetime(2026, 3, 4, 15, 20, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    "written",
    [
        "2026-03-04 15:20:11 +00:00",
        "2026-03-04 15:20:11 +0000",
        "2026-03-04T15:20:11+00:00",
        "2026-03-04T15:20:11.000Z",
        "2026-03-04T15:20:11Z",
        "2026-03-04 15:20:11",
        "2026-03-04 17:20:11 +02:00",
        "2026-03-04 07:50:11 -0730",
        "2026-03-04T07:20:11-08",
        " 2026-03-04 15:20:11 +00:00\n",
        1772637611000,
        "1772637611000",
        1772637611,
        "1772637611",
        1772637611.0,
    ],
)
def test_every_format_is_read(written: object) -> None:
    """All formats give the same time. A time without an offset is UTC."""
    assert read_moment(written) == SECOND


@pytest.mark.parametrize(
    ("written", "microsecond"),
    [
        ("2026-03-04T15:20:11.134105.000Z", 134_105),
        ("2026-03-04T15:20:11.1Z", 100_000),
        ("2026-03-04T15:20:11.1234567891Z", 123_456),
        (1772637611134, 134_000),
        ("1772637611.5", 500_000),
        ("1772637611134.25", 134_250),
    ],
)
def test_fractions_of_seconds_are_kept(written: object, microsecond: int) -> None:
    """A fraction that a formatter wrote twice is read too."""
    assert read_moment(written) == SECOND.replace(microsecond=microsecond)


@pytest.mark.parametrize(
    "written",
    [
        None,
        True,
        "",
        "now",
        "yesterday",
        "infinity",
        "2026-03-04",
        "2026-02-30 15:20:11 +00:00",
        "2026-03-04 24:00:01 +00:00",
        "2026-03-04 15:20:60 +00:00",
        "2026-03-04 15:20:11 +25:00",
        "2026-03-04 15:20:11 PST",
        "0001-01-01 00:00:00 +01:00",
        "9999-12-31 23:59:59 -01:00",
        "0000-01-01 00:00:00",
        "٢٠٢٦-03-04 15:20:11",
        "999999999999999",
        10**30,
        float("nan"),
        float("inf"),
        {},
        [],
    ],
)
def test_a_value_that_is_no_time_gives_none(written: object) -> None:
    """An event with such a time lands too."""
    assert read_moment(written) is None


@given(st.one_of(st.text(), st.integers(), st.floats(), st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.+ Z-]{0,30}")))
def test_any_value_gives_a_time_or_none(written: object) -> None:
    """Any text gives a time in UTC or None."""
    moment = read_moment(written)
    assert moment is None or moment.utcoffset() == datetime.now(UTC).utcoffset()


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_that_is_written_can_be_read(moment: datetime) -> None:
    """Segment's calls have milliseconds."""
    assert read_moment(iso_text(moment)) == moment.replace(microsecond=moment.microsecond // 1000 * 1000)
