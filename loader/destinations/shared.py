"""Keeps the knowledge that the live delivery of a destination and its replays share in one process.

These deliveries share the limits of the receiver, so the turns of their requests are given out together.
"""

import math
import threading
from collections.abc import Iterable

# A profile of Iterable is visible to events so many seconds after its first update.
PROFILE_SECONDS = 60.0
_MOST_PROFILES = 100_000


class Pace:
    """Gives out the turns of requests, evenly spaced, to several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_at: dict[str, float] = {}

    def take_turn(self, name: str, rate: float, now: float) -> float:
        """Reserve the next turn, and return its time.

        Args:
            name: The name of the limit.
            rate: Largest number of requests a second; 0 for no limit.
            now: The present time in seconds, on the clock of the deliveries.
        """
        if not rate:
            return now
        with self._lock:
            turn = max(now, self._next_at.get(name, now))
            self._next_at[name] = turn + 1 / rate
        return turn


class NewProfiles:
    """Remembers when each user's profile was first sent, because Iterable shows a new profile to events later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first_at: dict[str, float] = {}

    def note(self, keys: Iterable[str], now: float) -> None:
        """Note that the profile of a user was accepted; later updates of the same user change nothing."""
        with self._lock:
            for key in keys:
                self._first_at.setdefault(key, now)
            while len(self._first_at) > _MOST_PROFILES:
                del self._first_at[next(iter(self._first_at))]

    def visible_at(self, keys: Iterable[str]) -> float:
        """Return the time at which events of a user may go; minus infinity if no profile of the user was sent."""
        with self._lock:
            return max(
                (self._first_at[key] + PROFILE_SECONDS for key in keys if key in self._first_at), default=-math.inf
            )


class Shared:
    """The knowledge that all deliveries of one destination share.

    Attributes:
        pace: The turns of the requests.
        profiles: The profiles that were sent.
        suppressed: Digests of the users about whom nothing is sent any more.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self.profiles = NewProfiles()
        self.suppressed: set[bytes] = set()
