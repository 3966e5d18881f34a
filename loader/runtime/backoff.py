"""Spaces the tries of work that fails, so that a service which is away is asked less and less often."""

import random


class Backoff:
    """Counts failures in a row and gives the wait after each: twice the wait before, up to a limit.

    Half of each wait is random, so that many processes do not return to a service at the same time.

    Attributes:
        failures: The number of failures in a row.

    Args:
        first: Seconds after the first failure.
        longest: The limit, in seconds.
    """

    def __init__(self, first: float, longest: float) -> None:
        self.failures = 0
        self._first = first
        self._longest = longest
        self._next = first

    def fail(self) -> float:
        """Count a failure and return the seconds to wait before the next try."""
        seconds = self._next
        self.failures += 1
        self._next = min(seconds * 2, self._longest)
        return seconds * random.uniform(0.5, 1)  # noqa: S311 - no secret

    def succeed(self) -> None:
        """Forget the failures."""
        self.failures, self._next = 0, self._first
