"""Waits between tries grow up to a limit and restart after a success."""

import pytest

from loader.runtime import backoff
from loader.runtime.backoff import Backoff


@pytest.fixture
def whole_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the largest random part of each wait."""
    monkeypatch.setattr(backoff.random, "uniform", lambda _, most: most)


def test_each_wait_is_twice_the_one_before_up_to_the_limit(whole_waits: None) -> None:
    """The count of failures rises further when the waits have reached the limit."""
    tries = Backoff(0.5, 3.0)
    assert [tries.fail() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert tries.failures == 5


def test_the_wait_after_a_success_is_the_first_wait_again(whole_waits: None) -> None:
    """The wait after a success is the first wait again."""
    tries = Backoff(0.5, 3.0)
    tries.fail()
    tries.fail()
    tries.succeed()
    assert tries.failures == 0
    assert tries.fail() == 0.5


def test_waits_differ_between_processes() -> None:
    """Each wait is between half of the full wait and the full wait."""
    waits = {Backoff(2.0, 60.0).fail() for _ in range(50)}
    assert len(waits) > 1
    assert all(1.0 <= wait <= 2.0 for wait in waits)


def test_thousands_of_failures_do_not_overflow_the_wait() -> None:
    """A power of two for each failure would exceed the range of a float after 1,024 failures."""
    tries = Backoff(2.0, 60.0)
    assert all(tries.fail() <= 60.0 for _ in range(5_000))
    assert tries.failures == 5_000
