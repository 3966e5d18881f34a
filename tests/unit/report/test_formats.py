"""The values of a report, as people read them."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from loader.report import formats


def plain(text: str) -> str:
    """Return a text with ordinary spaces."""
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1_234_567, "1,234,567"),
        (Decimal("1234.000000"), "1,234"),
        (Decimal("1234.56"), "1,234.6"),
        (Decimal("0.96"), "1"),
        (None, "–"),
    ],
)
def test_numbers_have_separators_of_thousands(value: int | Decimal | None, shown: str) -> None:
    """A credit may be a part of a conversion, so it may have a decimal."""
    assert formats.number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        ("0", "0.0 %"),
        ("0.0004", "< 0.1 %"),
        ("0.0005", "0.1 %"),
        ("0.3765", "37.7 %"),
        ("1", "100.0 %"),
        ("12.5", "1,250.0 %"),
    ],
)
def test_shares_have_one_decimal(share: str, shown: str) -> None:
    """A share that is not 0 does not look like 0."""
    assert plain(formats.percent(Decimal(share))) == shown


def test_a_missing_value_is_shown_as_a_dash() -> None:
    """SMS has no opens, and nothing can be delivered of no sends."""
    assert formats.percent(None) == formats.money(None) == formats.moment(None) == "–"


def test_money_has_two_decimals() -> None:
    """The code of no currency is said in words."""
    assert formats.money(Decimal("1234.5")) == "1,234.50"
    assert formats.money(Decimal("-0.005")) == "-0.01"
    assert [formats.currency(code) for code in ("EUR", "X" * 3)] == ["EUR", "no currency"]


def test_times_have_their_zone() -> None:
    """Times of every zone are shown in UTC."""
    assert (
        plain(formats.moment(datetime(2026, 3, 4, 23, 30, tzinfo=timezone(-timedelta(hours=1)))))
        == "5 Mar 2026, 00:30 UTC"
    )
    assert plain(formats.moment(datetime(999, 3, 4, 1, 2, tzinfo=UTC))) == "4 Mar 0999, 01:02 UTC"
    assert plain(formats.day(date(2026, 12, 31))) == "31 Dec 2026"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (172_800, "2 d"), (-3, "0 s")],
)
def test_a_span_of_time_is_in_its_largest_unit(seconds: float, shown: str) -> None:
    """The oldest waiting event may be days old."""
    assert plain(formats.duration(seconds)) == shown


@pytest.mark.parametrize(
    ("now", "before", "shown"),
    [
        (150, 100, "+50.0 %"),
        (50, 100, "−50.0 %"),
        (100, 100, "±0.0 %"),
        (5, 0, ""),
        (0, 5, "−100.0 %"),
        (499, 100, "+399.0 %"),
        (1240, 100, "× 12.4"),
    ],
)
def test_a_count_changes_in_percent(now: int, before: int, shown: str) -> None:
    """There is no change from nothing."""
    assert plain(formats.change(now, before)) == shown


def test_a_share_changes_in_points() -> None:
    """A change in percent of a share in percent would be misread."""
    assert plain(formats.change_of_share(Decimal("0.30"), Decimal("0.25"))) == "+5.0 points"
    assert plain(formats.change_of_share(Decimal("0.25"), Decimal("0.2501"))) == "±0.0 points"
    assert formats.change_of_share(None, Decimal("0.25")) == formats.change_of_share(Decimal("0.25"), None) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Offer for ann.smith+news@mail.example.com!", "Offer for (address)!"),
        ("https://shop.example/leave/ann@example.com/now", "https://shop.example/leave/(address)/now"),
        ("https://shop.example/leave/ann%40example.co.uk", "https://shop.example/leave/(address)"),
        ("https://blog.example/@ann/post", "https://blog.example/@ann/post"),
        ("Lunch @ 12", "Lunch @ 12"),
        ("Sale\u202e\x1b", "Sale\\u202e\\x1b"),
        ("☕" * 300, "☕" * 199 + "…"),
    ],
)
def test_a_text_of_a_sender_shows_no_address_and_no_control_character(text: str, shown: str) -> None:
    """No address of a person leaves the warehouse with the page, and no character hides or reverses others."""
    assert formats.sender_text(text) == shown
