"""The help: complete summaries, an example and the exit codes of each command, the most used commands first."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from loader.cli.app import main
from loader.cli.help import EXAMPLES, walk

ALL = dict(walk(main))
COMMANDS = [path for path, command in ALL.items() if not isinstance(command, click.Group)]
GROUPS = ["", *(path for path, command in ALL.items() if isinstance(command, click.Group))]


def shown(path: str) -> str:
    """Return the help of a command."""
    result = CliRunner().invoke(main, [*path.split(), "--help"], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_d9_every_command_has_an_example_and_every_example_names_its_command() -> None:
    """A new command without an example fails this test."""
    assert set(EXAMPLES) == set(COMMANDS)
    for path, examples in EXAMPLES.items():
        assert all(f"loader {path}" in example for example in examples)


@pytest.mark.parametrize("path", COMMANDS)
def test_d9_the_help_of_a_command_shows_its_examples_and_exit_codes(path: str) -> None:
    """Each example has a line, as people type it. Unusual exit codes are listed for commands that have them."""
    text = shown(path)
    for example in EXAMPLES[path]:
        assert f"\n    {example}\n" in text
        assert len(example) <= 76
    assert "Exit codes:\n    0  " in text
    assert "\n    2  wrong use" in text
    assert ("\n    3  " in text) == (path in {"load", "quarantine retry", "spool land"})


@pytest.mark.parametrize("path", GROUPS)
def test_d9_no_summary_is_cut(path: str) -> None:
    """A summary may take two lines, and the help shows both."""
    text = shown(path)
    assert "..." not in text.partition("Commands:")[2].partition("\n\n")[0]
    assert max(map(len, text.splitlines())) <= 80


def test_the_list_of_commands_repeats_the_summary_of_each_command() -> None:
    """The list of commands imports no command, so it repeats the summaries."""
    listed = " ".join(shown("").partition("Commands:\n")[2].partition("\n\n")[0].split())
    summaries = [f"{name} {command.short_help}" for name, command in main.commands.items()]
    assert listed == " ".join(" ".join(summaries).split())


def test_a_command_imports_only_the_packages_that_it_needs() -> None:
    """The list of commands needs no database, and a command needs only its own module."""
    assert imported("list", "status", "serve") == [
        set(),
        {"psycopg", "sqlalchemy"},
        {"psycopg", "sqlalchemy", "uvicorn"},
    ]


def imported(*commands: str) -> list[set[str]]:
    """Return the slow packages that a process has imported after the help of each command."""
    code = (
        "import sys\n"
        "from contextlib import suppress\n"
        "from loader.cli.app import main\n"
        "slow = {'alembic', 'dbt', 'pandas', 'psycopg', 'pyarrow', 'segment', 'sqlalchemy', 'uvicorn'}\n"
        "for command in sys.argv[1:]:\n"
        "    with suppress(SystemExit):\n"
        "        main([*([command] if command != 'list' else []), '--help'])\n"
        "    print(*(slow & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stderr.splitlines()]


def test_d9_the_most_used_commands_come_first() -> None:
    """Commands for setup, loading and queries come first. Rarely used commands come last."""
    names = [line.split()[0] for line in shown("").partition("Commands:\n")[2].splitlines() if line[2:3].strip()]
    assert names[:6] == ["demo", "up", "load", "transform", "status", "sql"]
    assert names.index("migrate") > names.index("quarantine")
