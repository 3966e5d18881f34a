"""Makes texts safe for a terminal: escapes control and invisible characters, and shortens long texts."""

import re
import unicodedata

# Letters and marks without a visible shape. Unicode's categories do not distinguish them from visible ones.
_SHAPELESS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")

_NOT_ASCII_TEXT = re.compile(r"[^ -~]")
# JSON's own escapes cover the characters below U+0020.
_NOT_JSON_TEXT = re.compile(r"[^ -~\n]")


def escape_controls(text: str, *, keep: str = "") -> str:
    r"""Replace characters that a terminal executes or hides by escapes such as `\x1b` or `\u202e`.

    Spaces of every width stay, and so do emoji with their variation selectors.

    Args:
        text: Any text.
        keep: Control characters that stay, such as a newline.
    """
    if text.isprintable() and _SHAPELESS.isdisjoint(text):
        return text
    return _NOT_ASCII_TEXT.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def count(number: int, noun: str) -> str:
    """Return a count with its noun, e.g. `1,204 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shorten(text: str, characters: int) -> str:
    """Cut a text to a number of characters; an ellipsis at the end shows the cut."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def escape_json_controls(document: str) -> str:
    r"""Replace such characters in the strings of a JSON document by `\u....` escapes; the values stay the same."""
    return _NOT_JSON_TEXT.sub(lambda found: found[0] if _is_visible(found[0]) else _json_escape(found[0]), document)


def _escape(character: str) -> str:
    return character if _is_visible(character) else character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    encoded = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{encoded[i : i + 2].hex()}" for i in range(0, len(encoded), 2))


def _is_visible(character: str) -> bool:
    if character in _SHAPELESS:
        return False
    return character.isprintable() or unicodedata.category(character) == "Zs"
