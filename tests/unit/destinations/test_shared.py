"""The knowledge that the deliveries of one destination share: turns of requests, and new profiles."""

import math

import pytest

from loader.destinations.shared import NewProfiles, Pace


def test_turns_are_spaced_evenly_for_each_limit() -> None:
    """A limit that was not used for a while saves no turns."""
    pace = Pace()
    assert [pace.take_turn("users", 5.0, 10.0) for _ in range(3)] == pytest.approx([10.0, 10.2, 10.4])
    assert pace.take_turn("events", 10.0, 10.0) == 10.0
    assert [pace.take_turn("users", 5.0, 60.0) for _ in range(2)] == pytest.approx([60.0, 60.2])
    assert [pace.take_turn("free", 0.0, 10.0) for _ in range(2)] == [10.0, 10.0]


def test_the_first_update_of_a_profile_decides_when_the_profile_is_visible() -> None:
    """A user with several keys is as new as the newest key."""
    profiles = NewProfiles()
    profiles.note(["a@example.com", "u1"], 100.0)
    profiles.note(["a@example.com", "u2"], 130.0)
    assert profiles.visible_at(["a@example.com"]) == 160.0
    assert profiles.visible_at(["a@example.com", "u2"]) == 190.0
    assert profiles.visible_at(["unknown"]) == -math.inf


def test_the_oldest_profiles_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a worker does not grow with the number of users."""
    monkeypatch.setattr("loader.destinations.shared._MOST_PROFILES", 2)
    profiles = NewProfiles()
    for number in range(4):
        profiles.note([f"u{number}"], float(number))
    assert [profiles.visible_at([f"u{number}"]) for number in range(4)] == [-math.inf, -math.inf, 62.0, 63.0]
