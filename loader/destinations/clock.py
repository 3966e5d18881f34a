"""Tells deliveries the time, and lets them wait. Tests pass a clock of their own, which moves without waiting."""

import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The time and the waits of a delivery."""

    def now(self) -> datetime:
        """Return the present time."""

    def seconds(self) -> float:
        """Return seconds that never run backwards."""

    def wait(self, stop: threading.Event, seconds: float) -> None:
        """Wait, at most until an event is set."""

    def ahead_seconds(self) -> float:
        """Return the seconds by which this clock is ahead of the machine's clock."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        """Return the present time."""
        return datetime.now(UTC)

    def seconds(self) -> float:
        """Return seconds that never run backwards."""
        return time.monotonic()

    def wait(self, stop: threading.Event, seconds: float) -> None:
        """Wait, at most until an event is set."""
        stop.wait(seconds)

    def ahead_seconds(self) -> float:
        """Return 0: this is the machine's clock."""
        return 0.0
