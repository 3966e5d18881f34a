"""Durations as people write them, and errors without private values."""

import pytest

from loader.errors import without_values
from loader.settings import read_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("2m", 120), ("1h", 3600), ("30", 30), ("0.5", 0.5), (" 1.5 m ", 90), (".2s", 0.2), ("24h", 86_400)],
)
def test_a_duration_is_a_number_with_a_unit_or_seconds(text: str, seconds: float) -> None:
    """The units are seconds, minutes and hours. A number alone is in seconds."""
    assert read_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "5 d", "-5s", "0", "0.01s", "25h", "1e3", "five", "5s5s", "٥s", "nan", "inf"]
)
def test_a_text_that_is_no_valid_duration_is_refused(text: str) -> None:
    """Very short and very long times are refused too."""
    with pytest.raises(ValueError, match="must be a duration"):
        read_duration(text)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('invalid input syntax for type bigint: "a@b.example"', "invalid input syntax for type bigint: …"),
        ('value "4310021" is out of range for type integer', "value … is out of range for type integer"),
        ("duplicate key\nDETAIL:  Key (id)=(secret) exists.", "duplicate key"),
        ("cannot reach postgresql://me:word@host/base", "cannot reach …"),
        ('column "campaign_id" is of type integer[]', 'column "campaign_id" is of type integer[]'),
        ("no such thing LINE 3: insert into x values ('secret')", "no such thing"),
    ],
)
def test_the_reason_of_an_error_contains_no_private_value(message: str, told: str) -> None:
    """The log names the failure and no value of an event."""
    assert without_values(message) == told
