"""Generates `commands.md` from the command line and `layout.md` from the dbt project; `make docs` runs this module."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from loader.cli.app import main
from loader.cli.help import EXAMPLES, exit_codes, walk
from loader.settings import describe

DOCS = Path(__file__).parent
MODELS = DOCS.parent / "dbt_project" / "models" / "iterable"

_DESCRIBED = re.compile(r"\{% docs (\w+) %\}(.*?)\{% enddocs %\}", re.DOTALL)
_REFERENCE = re.compile(r"\{\{ doc\('(\w+)'\) \}\}")


def generate_pages() -> dict[Path, str]:
    """Return the text of each generated page."""
    return {DOCS / "commands.md": "\n".join(_commands()), DOCS / "layout.md": "\n".join(_layout())}


def _commands() -> Iterator[str]:
    yield "# Commands\n"
    yield "`make docs` generates this page from the command line. `loader COMMAND --help` shows the same text.\n"
    yield "Data goes to stdout, progress and notes to stderr. Every command has `--help`.\n"
    found = {path: command for path, command in walk(main) if not isinstance(command, click.Group)}
    yield from _table(
        ["command", "purpose"],
        [[f"[`loader {path}`](#loader-{path.replace(' ', '-')})", _summary(found[path])] for path in EXAMPLES],
    )
    for path in EXAMPLES:
        yield from _command(path, found[path])
    yield "## Settings\n"
    yield "Environment variables set them. An empty variable counts as not set.\n"
    yield from _table(
        ["variable", "meaning", "default"], [[f"`{name}`", text, default] for name, default, text in describe()]
    )


def _command(path: str, command: click.Command) -> Iterator[str]:
    with click.Context(command, info_name=f"loader {path}") as context:
        usage = " ".join(command.collect_usage_pieces(context))
        options = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    yield f"## `loader {path}`\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    yield f"    loader {path} {usage}\n"
    yield from _table(["option", "meaning"], [[f"`{names}`", text] for names, text in options if "--help" not in names])
    yield "Examples:\n"
    yield from (f"    {example}" for example in EXAMPLES[path])
    codes = "; ".join(f"**{code}** {meaning}" for code, meaning in exit_codes(path).items())
    yield f"\nExit codes: {codes}.\n"


def _summary(command: click.Command) -> str:
    return (command.help or "").split("\n\n")[0].replace("\n", " ")


def _layout() -> Iterator[str]:
    texts = dict(_DESCRIBED.findall((MODELS / "columns.md").read_text(encoding="utf-8")))
    models = [_model(path) for path in sorted(MODELS.glob("*.yml"))]
    models.sort(key=lambda model: model["name"] != "tracks")
    shared = [column["name"] for column in models[0]["columns"] if _is_shared(column["name"], models)]

    def describe_columns(columns: list[dict[str, Any]]) -> Iterator[str]:
        rows = [
            [
                f"`{column['name']}`",
                column["data_type"],
                _origin(column),
                _REFERENCE.sub(lambda found: texts[found[1]], column["description"]),
            ]
            for column in columns
        ]
        yield from _table(["column", "type", "value", "description"], rows)

    yield "# Layout\n"
    yield "`make docs` generates this page from the yml files in `dbt_project/models/iterable/`.\n"
    yield "Every source has these tables in its schema. A run adds columns for properties that the yml does not list:"
    yield "[how a new property becomes a column](tables.md#how-a-new-property-becomes-a-column).\n"
    yield from _table(
        ["table", "rows"], [[f"[`{model['name']}`](#{model['name']})", model["description"]] for model in models]
    )
    yield "## Columns of every table\n"
    yield from describe_columns([column for column in models[0]["columns"] if column["name"] in shared])
    for model in models:
        yield f"## `{model['name']}`\n"
        yield f"{model['description']} It also has the columns of every table.\n"
        yield from describe_columns([column for column in model["columns"] if column["name"] not in shared])


def _model(path: Path) -> dict[str, Any]:
    [model] = yaml.safe_load(path.read_text(encoding="utf-8"))["models"]
    return dict(model)


def _is_shared(name: str, models: list[dict[str, Any]]) -> bool:
    return all(any(column["name"] == name for column in model["columns"]) for model in models)


def _origin(column: dict[str, Any]) -> str:
    """Return where the value of a column comes from; empty for the layout's own columns."""
    meta = column.get("config", {}).get("meta", {})
    for part, keys in meta.items():
        path = keys if isinstance(keys, str) else ".".join(keys)
        return f"`context.{path}`" if part == "context" else f"`{path}`"
    return ""


def _escape(text: str) -> str:
    """Return a cell of a table without marks that end the cell or begin HTML."""
    return text.replace("|", "&#124;").replace("<", "&lt;").strip()


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table and an empty line; nothing where there are no rows."""
    if rows:
        for cells in (head, ["---"] * len(head), *rows):
            yield f"| {' | '.join(map(_escape, cells))} |".replace("|  |", "| |")
        yield ""


if __name__ == "__main__":
    for page, text in generate_pages().items():
        page.write_text(text, encoding="utf-8")
