"""Logs: one form for all lines, and no value that a sender has sent."""

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
import structlog

from loader.runtime.logs import configure_logs

SECRET = "ada@example.com"


class Terminal(io.StringIO):
    """A terminal that keeps the written text."""

    def isatty(self) -> bool:
        """Tell that the output is a terminal."""
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["file", "terminal"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Return the logged text, for a file or for a terminal."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("loader").level)
    stream: io.StringIO = request.param()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs()
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("loader").setLevel(before[2])
    structlog.reset_defaults()


def fail() -> None:
    """Raise an error that quotes a sent value, caused by another such error."""
    try:
        {}[SECRET]
    except KeyError as error:
        raise ValueError(f"cannot read {SECRET}") from error


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
def test_the_log_shows_an_errors_type_and_place_but_not_its_message(written: io.StringIO, foreign: bool) -> None:
    """This also holds for the causes of an error, in the loader's log and in the logs of libraries."""
    try:
        fail()
    except ValueError:
        if foreign:
            logging.getLogger("uvicorn.error").exception("it failed")
        else:
            structlog.get_logger("loader").exception("it failed")
    text = written.getvalue()
    assert SECRET not in text
    assert "it failed" in text
    assert "ValueError" in text
    assert "KeyError" in text
    assert f"{__file__}:" in text


def test_lines_are_json_unless_a_person_reads_them(written: io.StringIO) -> None:
    """Each line has its time and level."""
    structlog.get_logger("loader").info("it happened", number=3)
    logging.getLogger("uvicorn.error").warning("so did that")
    structlog.get_logger("loader").debug("nobody asked")
    lines = written.getvalue().splitlines()
    assert len(lines) == 2
    if written.isatty():
        assert "it happened" in lines[0]
        assert "so did that" in lines[1]
        return
    first, second = map(json.loads, lines)
    assert (first["event"], first["number"], first["level"]) == ("it happened", 3, "info")
    assert (second["event"], second["level"]) == ("so did that", "warning")
    assert first["timestamp"] <= second["timestamp"]


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
def test_c4_a_log_holds_no_control_character_from_outside(written: io.StringIO, foreign: bool) -> None:
    """A reason that quotes a name or a path is written with escapes."""
    hostile = "name\x1b]0;owned\x07\x9b2J\u202e\x7f"
    if foreign:
        logging.getLogger("uvicorn.error").error("it failed: %s", hostile)
    else:
        structlog.get_logger("loader").error(hostile, reason=hostile)
    text = written.getvalue()
    assert "owned" in text
    assert {"\x07", "\x9b", "\u202e", "\x7f"}.isdisjoint(text)
    assert "\x1b]" not in text


def test_d6_a_line_on_a_terminal_is_plain_and_has_the_clock_time(written: io.StringIO) -> None:
    """A person reads the event. The level is left out unless it is a warning or an error."""
    structlog.get_logger("loader").info("6 events in 4 tables")
    structlog.get_logger("loader").warning("5 messages refused", source="app")
    if written.isatty():
        first, second = written.getvalue().splitlines()
        assert re.fullmatch(r"\d\d:\d\d:\d\d  6 events in 4 tables", first)
        assert re.fullmatch(r"\d\d:\d\d:\d\d  warning: 5 messages refused source=app", second)
