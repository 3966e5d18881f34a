"""Text without characters that control a terminal."""

import json
import unicodedata

import pytest

from loader.runtime.terminal import escape_controls, escape_json_controls


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("\x7f\r\b", r"\x7f\r\x08"),
        ("user\u202egpj.exe", r"user\u202egpj.exe"),
        ("\u2066a\u2069", r"\u2066a\u2069"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("blank\u3164letter", r"blank\u3164letter"),
        ("half\ud83d", r"half\ud83d"),
        ("plain, é, 日本語, 🎉, ❤\ufe0f, a\u00a0b, a\u3000b", "plain, é, 日本語, 🎉, ❤\ufe0f, a\u00a0b, a\u3000b"),
    ],
)
def test_c4_control_and_invisible_characters_become_escapes(text: str, shown: str) -> None:
    """Control, bidirectional, invisible and broken characters become escapes. Visible text stays."""
    assert escape_controls(text) == shown


def test_c4_no_control_or_format_character_of_unicode_passes() -> None:
    """Every character is visible, a space, or an ASCII escape."""
    # The planes with assigned formats and controls whole, and a character in 97 of the others.
    every = "".join(map(chr, [*range(0x20000), *range(0x20000, 0x110000, 97), *range(0xE0000, 0xE1000), 0x10FFFF]))
    assert {unicodedata.category(character) for character in set(escape_controls(every))}.isdisjoint(
        {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    )


def test_c4_a_character_to_keep_stays() -> None:
    """Newlines stay, and other control characters are escaped."""
    assert escape_controls("one\ntwo\r\x1b", keep="\n") == "one\ntwo\\r\\x1b"


def test_c4_json_keeps_its_values() -> None:
    """The document has the same values, and no character that controls a terminal."""
    value = {"a\x9b": "\x1b\x7f\u202e\U000e0041 é \\"}
    document = escape_json_controls(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(document) == value
    assert escape_controls(document, keep="\n") == document
