"""Formats the values of a report for people: numbers, shares, money, times, and texts that senders wrote."""

import re
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal

from loader.runtime.terminal import escape_controls, shorten

NOTHING = "–"
_NO_BREAK = "\u00a0"

# From this factor on, a change in percent would be hard to read.
_LARGE_FACTOR = 5

# Longest text of a sender that a page shows, in characters.
_LONGEST_TEXT = 200

# A link may have the address of its recipient in its path, with the `@` as it is or encoded.
_ADDRESS = re.compile(r"[^\s@/<>\"'(),;:=&?]+(?:@|%40)(?:[\w-]+\.)+\w{2,}", re.IGNORECASE)
_HIDDEN = "(address)"

# ISO 4217's code for no currency.
_NO_CURRENCY = "X" * 3


def number(value: int | Decimal | None) -> str:
    """Return a number with separators of thousands, and with one decimal unless it is whole."""
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    rounded = value.quantize(Decimal("0.1"), ROUND_HALF_UP)
    return f"{int(rounded):,}" if rounded == int(rounded) else f"{rounded:,}"


def percent(share: Decimal | None) -> str:
    """Return a share in percent with one decimal; a smaller share that is not 0 is `< 0.1 %`."""
    if share is None:
        return NOTHING
    rounded = (share * 100).quantize(Decimal("0.1"), ROUND_HALF_UP)
    shown = f"<{_NO_BREAK}0.1" if share > 0 and not rounded else f"{rounded:,}"
    return f"{shown}{_NO_BREAK}%"


def money(value: Decimal | None) -> str:
    """Return an amount with two decimals."""
    return NOTHING if value is None else f"{value.quantize(Decimal('0.01'), ROUND_HALF_UP):,}"


def currency(code: str) -> str:
    """Return the code of a currency, or `no currency`."""
    return "no currency" if code == _NO_CURRENCY else code


def day(value: date) -> str:
    """Return a day, e.g. `3 Nov 2026`."""
    return f"{value.day}{_NO_BREAK}{value:%b}{_NO_BREAK}{value.year:04}"


def moment(value: datetime | None) -> str:
    """Return a time in UTC, e.g. `3 Nov 2026, 18:04 UTC`."""
    if value is None:
        return NOTHING
    value = value.astimezone(UTC)
    return f"{day(value)}, {value:%H:%M}{_NO_BREAK}UTC"


def duration(seconds: float) -> str:
    """Return a time span in its largest whole unit, e.g. `3 h`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size):,}{_NO_BREAK}{unit}"
    return f"{int(max(seconds, 0))}{_NO_BREAK}s"


def change(now: int | Decimal, before: int | Decimal) -> str:
    """Return the change of a count against the period before, in percent or as a factor.

    Without a count before, there is no change to tell.
    """
    if not before:
        return ""
    if now >= _LARGE_FACTOR * before:
        return f"×{_NO_BREAK}{number(Decimal(now) / Decimal(before))}"
    share = (Decimal(now) - Decimal(before)) / Decimal(before) * 100
    return f"{_signed(share)}{_NO_BREAK}%"


def change_of_share(now: Decimal | None, before: Decimal | None) -> str:
    """Return the change of a share against the period before, in percentage points; nothing if one is missing."""
    if now is None or before is None:
        return ""
    return f"{_signed((now - before) * 100)}{_NO_BREAK}points"


def _signed(value: Decimal) -> str:
    rounded = value.quantize(Decimal("0.1"), ROUND_HALF_UP)
    return f"{rounded:+,}".replace("-", "−") if rounded else "±0.0"


def sender_text(text: str) -> str:
    """Return a text that a sender wrote, fit for a page that people forward.

    Addresses of people are hidden, invisible and control characters become escapes, and long texts are cut. The
    template escapes the characters of HTML.
    """
    return shorten(escape_controls(_ADDRESS.sub(_HIDDEN, text)), _LONGEST_TEXT)
