"""Output for people and scripts: tables, counts, spans of time, JSON."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from loader.cli.output import ProgressDisplay, duration, grid, landed_lines, show_rows, table, to_json
from loader.files.load import Progress
from loader.postgres.connection import unreachable
from loader.raw.landing import LandingResult
from loader.runtime.terminal import count, shorten


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    """Digits of equal weight are aligned, words begin at the left, and no line ends in spaces."""
    rows = [{"table": "tracks", "rows": 1204, "share": 0.5}, {"table": "email_opened", "rows": 7, "share": None}]
    assert table(rows).splitlines() == [
        "table          rows  share",
        "------------  -----  -----",
        "tracks        1,204   0.50",
        "email_opened      7",
    ]


def test_cells_are_one_line_each() -> None:
    """No value can break the table."""
    moment = datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    row = {"a": "two\nlines\tand more", "b": True, "c": None, "d": moment, "e": {"environment": "prod", "team": "crm"}}
    assert table([row]).splitlines()[2] == "two lines and more  yes     2024-01-02 01:04:05  environment:prod team:crm"


def test_exact_cells_show_values_as_the_database_prints_them() -> None:
    """The rows of a query are shown without prettier values."""
    shown = grid(["n", "flag", "list"], [[1204, True, ["é", 1]], [Decimal("1.50"), None, {}]], exact=True)
    assert shown.splitlines()[2:] == ['1204  true  ["é", 1]', "1.50        {}"]


def test_no_rows_are_an_empty_table() -> None:
    """An empty table is an empty text. An empty result of a query still shows its columns."""
    assert table([]) == ""
    assert grid(["id"], []) == "id\n--"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.04, "0.0 s"),
        (9.5, "9.5 s"),
        (42, "42 s"),
        (60, "1 min"),
        (600.4, "10 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (86400 * 2 + 3600 * 5 + 59, "2 d 5 h"),
    ],
)
def test_d10_a_span_of_time_has_at_most_two_units(seconds: float, text: str) -> None:
    """A span has at most two units, and the larger unit comes first."""
    assert duration(seconds) == text


def test_counts_agree_with_their_noun() -> None:
    """The output is 1 row, 2 rows, and thousands with a comma."""
    assert [count(n, "row") for n in (0, 1, 1204)] == ["0 rows", "1 row", "1,204 rows"]


def test_json_holds_numbers_iso_times_and_spans_in_seconds() -> None:
    """Times are ISO 8601, spans are seconds, integers stay integers, and text stays readable."""
    value = {
        "at": datetime(2024, 1, 2, tzinfo=UTC),
        "for": timedelta(seconds=1.5),
        "whole": Decimal(12345678901234567890),
        "part": Decimal("1.5"),
        "bytes": b"\xff!",
        "text": "é🎉",
    }
    assert json.loads(to_json(value)) == {
        "at": "2024-01-02T00:00:00+00:00",
        "for": 1.5,
        "whole": 12345678901234567890,
        "part": 1.5,
        "bytes": "\ufffd!",
        "text": "é🎉",
    }
    assert "é🎉" in to_json(value)


def test_rows_are_shown_for_people_or_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON of no rows is an empty list. People get a sentence."""
    show_rows([], as_json=True, empty="Nothing.")
    show_rows([], as_json=False, empty="Nothing.")
    show_rows([{"a": 1}], as_json=True, empty="Nothing.")
    out, err = capsys.readouterr()
    assert out == '[]\nNothing.\n[\n  {\n    "a": 1\n  }\n]\n'
    assert err == ""


def test_the_summary_of_a_landing_counts_events_and_each_reason() -> None:
    """The most frequent reason comes first. Repaired events have a line of their own."""
    landed = LandingResult(1204, Counter(invalid_json=2, nul_character=3), repaired=3)
    lines = landed_lines(landed)
    assert lines[0].startswith("1,204 events landed")
    assert lines[1:3] == ["3 messages in quarantine: nul_character", "2 messages in quarantine: invalid_json"]
    assert lines[3].startswith("3 of these landed with replaced characters")
    assert len(landed_lines(LandingResult(1))) == 1


def test_progress_in_a_log_is_at_most_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal, progress is a line on stderr at most every ten seconds."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    show, progress = ProgressDisplay(), Progress(2000, started=100.0)
    for clock[0] in (101.0, 109.0, 110.0, 111.0, 119.0, 120.0):
        progress.bytes_read, progress.landed.rows = int(clock[0] - 100) * 100, int(clock[0] - 100) * 7
        show(progress)
    show.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "70 events landed, 7 events/s, 50%, 10 s left",
        "140 events landed, 7 events/s, 100%, 0.0 s left",
    ]


def test_d3_progress_counts_the_messages_in_quarantine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of messages in quarantine stands beside the number of landed events."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    show, progress = ProgressDisplay(), Progress(2000, started=100.0)
    progress.bytes_read, progress.landed = 1000, LandingResult(48, Counter(invalid_json=4_400_000))
    clock[0] = 110.0
    show(progress)
    assert capsys.readouterr().err == "48 events landed, 4,400,000 in quarantine, 5 events/s, 50%, 10 s left\n"


def test_d10_a_shortened_text_ends_in_an_ellipsis() -> None:
    """The length includes the ellipsis."""
    assert shorten("abcde", 5) == "abcde"
    assert shorten("abcdef", 5) == "abcd…"


@pytest.mark.parametrize(
    ("reason", "shown"), [("refused", "refused."), ("refused.", "refused."), ("is it\n running?", "is it running?")]
)
def test_d10_a_reason_ends_in_one_punctuation_mark(reason: str, shown: str) -> None:
    """A message of libpq ends as a sentence does."""
    message = str(unreachable("postgresql://u:secret@h/d", reason))
    assert (
        message == f"Cannot connect to the database at h:5432/d: {shown} Check DATABASE_URL and that the server is up."
    )
