"""The documentation: generated pages are current, links lead somewhere, commands exist, sentences are short."""

import ast
import inspect
import re
import runpy
import shlex
from contextlib import chdir
from pathlib import Path

import click
import pytest

from loader.cli.app import main
from tests.support.folders import ROOT

GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))["generate_pages"]()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page not in GENERATED]
LOADER = sorted((ROOT / "loader").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_SENTENCE = 25

EXAMPLE = re.compile(r"^ {4}loader (.+)$|\$\(loader ([^)]+)\)", re.MULTILINE)
IN_TEXT = re.compile(r"`loader ([a-z][^`…]*)`")


def relative(page: Path) -> str:
    """Return the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_command(words: list[str]) -> click.Command:
    """Return the command that words begin with, and remove its name from the words."""
    context = click.Context(main)
    command: click.Command = main
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found, f"there is no command {words[0]}"
        command = found
        words.pop(0)
    return command


def sentences(text: str) -> list[str]:
    """Return the sentences and cells of a page, without examples, code and text in parentheses."""
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"^#.*$|^ {4,}(?![-*\d]).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"\([^()]*\)", "", text)
    parts = re.split(r"\n\s*\n|\n\s*(?=[-*] |\d+\. )|\||(?<=[.:;?])\*{0,2}\s+", text)
    return [" ".join(part.split()) for part in parts]


def long_sentences(text: str) -> list[str]:
    """Return the sentences of a text that exceed the limit of CONTRIBUTING.md."""
    return [each for each in sentences(text) if len(re.findall(r"[\w'’%-]+", each)) > LONGEST_SENTENCE]


def docstrings(tree: ast.AST) -> list[ast.Constant]:
    """Return the docstrings of a module, its classes and its functions."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    bodies = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    return [body.value for body in bodies if isinstance(body, ast.Expr) and isinstance(body.value, ast.Constant)]


def literals(tree: ast.AST) -> list[str]:
    """Return the texts in a module's code, without docstrings; in a formatted text, `value` replaces each value."""
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    others = {id(part) for node in formatted for part in node.values} | {id(node) for node in docstrings(tree)}
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in others]
    return [node.value for node in plain if isinstance(node.value, str)] + [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "value" for part in node.values)
        for node in formatted
    ]


@pytest.mark.parametrize("page", GENERATED, ids=relative)
def test_a_generated_page_is_current(page: Path) -> None:
    """After a change to a command, a setting or a yml, `make docs` writes the page again."""
    assert page.read_text(encoding="utf-8") == GENERATED[page], f"{relative(page)} is stale: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_link_leads_to_a_heading_that_exists(page: Path) -> None:
    """A link within the repository names an existing file, and after `#` a heading of that page."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_an_example_is_a_command_with_options_that_exist(page: Path, tmp_path: Path) -> None:
    """The command line accepts each example and each command named in the text."""
    text = page.read_text(encoding="utf-8")
    (tmp_path / "message.json").write_text("{}")
    for indented, embedded in EXAMPLE.findall(text):
        words = shlex.split(re.split(r" [|>] ", indented or embedded)[0], comments=True)
        command = find_command(words)
        with chdir(tmp_path):
            command.make_context("loader", words).close()
    for named in IN_TEXT.findall(text):
        find_command(named.split())


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_a_sentence_is_short(page: Path) -> None:
    """CONTRIBUTING.md sets the limit."""
    assert long_sentences(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", LOADER, ids=relative)
def test_a_sentence_of_a_message_is_short(module: Path) -> None:
    """Every text in the code counts, except indented lines, which are SQL."""
    assert [each for text in literals(ast.parse(module.read_bytes())) for each in long_sentences(text)] == []


@pytest.mark.parametrize("module", [*LOADER, *TESTS], ids=relative)
def test_a_sentence_of_a_docstring_is_short(module: Path) -> None:
    """The docstrings of the tests count too."""
    found = docstrings(ast.parse(module.read_bytes()))
    assert [each for node in found for each in long_sentences(inspect.cleandoc(str(node.value)))] == []
