"""Chance in the sample events, which gives the same results for the same seed.

The values come from `random()` and `getrandbits()` alone, whose numbers are equal in every version of Python. Events
that are rare come at a fixed pace instead, so that a small sample has them too.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Chance:
    """The source of all that happens by chance.

    Args:
        seed: Another seed gives other results.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - sample events need no secrets
        self._paces: dict[str, float] = {}
        self._turns: dict[str, int] = {}

    def share(self) -> float:
        """Return a number from 0 to 1, without 1."""
        return self._random.random()

    def happens(self, rate: float) -> bool:
        """Return true at a rate from 0 to 1."""
        return self._random.random() < rate

    def paced(self, name: str, rate: float) -> bool:
        """Return true at a fixed pace: the first time after half of `1 / rate` calls, then once in as many calls."""
        sum_of_rates = self._paces.get(name, 0.5) + rate
        self._paces[name] = sum_of_rates % 1
        return sum_of_rates >= 1

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[int(self._random.random() * len(items))]

    def turn(self, name: str, items: Sequence[Item]) -> Item:
        """Return the items in turn."""
        self._turns[name] = turn = self._turns.get(name, -1) + 1
        return items[turn % len(items)]

    def within(self, least: int, most: int, power: int = 1) -> int:
        """Return a number of seconds; a higher power makes short times more frequent."""
        return int(least + (most - least) * self._random.random() ** power)

    def digits(self, number: int) -> str:
        """Return an id of so many hexadecimal digits."""
        return f"{self._random.getrandbits(4 * number):0{number}x}"
