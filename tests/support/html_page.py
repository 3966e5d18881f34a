"""Reads an HTML page as a test needs it: its elements, and the texts of its sections and tables."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

# Elements without an end tag.
_EMPTY = {"br", "img", "input", "link", "meta", "hr", "line", "rect"}


@dataclass
class Element:
    """An element of a page, with its children in order; a text is a child."""

    tag: str
    attributes: dict[str, str]
    children: list["Element | str"] = field(default_factory=list)

    def all(self, tag: str = "", *, of_class: str = "") -> list["Element"]:
        """Return the elements below this one with a tag and a class."""
        return [
            element
            for element in self._below()
            if tag in {"", element.tag} and (not of_class or of_class in element.attributes.get("class", "").split())
        ]

    def section(self, name: str) -> "Element":
        """Return the element with an id."""
        [found] = [element for element in self._below() if element.attributes.get("id") == name]
        return found

    def table(self) -> list[list[str]]:
        """Return the texts of the cells of the first table, without its heading."""
        [body, *_] = self.all("tbody")
        return [[cell.text() for cell in row.children if isinstance(cell, Element)] for row in body.all("tr")]

    def statements(self) -> list[str]:
        """Return the SQL to unfold."""
        return [element.text() for element in self.all("pre")]

    def text(self) -> str:
        """Return the text of the element as a browser shows it on one line; that of `pre` stays as it is."""
        whole = "".join(child if isinstance(child, str) else child.text() for child in self.children)
        return whole if self.tag == "pre" else " ".join(whole.split())

    def _below(self) -> Iterator["Element"]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in _EMPTY:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> ends <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def read_page(page: str) -> Element:
    """Return the root of a page; each element must end where it should."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.root is reader._open[-1]
    return reader.root
