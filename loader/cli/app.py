"""Runs the command line: finds a command by its name, runs the command, and shows errors as one line.

Data goes to stdout, and progress and notes go to stderr. Exit code 0: done; 1: work failed; 2: wrong use; 3: files were
loaded, but some of their messages are in quarantine.

Only the module of the called command is imported, so each command starts quickly.
"""

import io
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, cast

import click

from loader import __version__
from loader.cli import output
from loader.cli.help import complete_help
from loader.errors import LoaderError
from loader.settings import describe, unknown_variables

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class _Entry(NamedTuple):
    """The place of a command, and its summary in the help of `loader`: the first paragraph of the command's help."""

    module: str
    name: str
    summary: str


# The order is the order of the help: the most used commands come first.
_COMMANDS = {
    "demo": _Entry(
        "demo",
        "demo",
        "Load and transform sample events in a database of their own, and show the tables and a report.",
    ),
    "up": _Entry(
        "up", "up", "Run the whole product: the collector, the transform every few seconds and the embedded database."
    ),
    "load": _Entry("load", "load", "Land files of events."),
    "transform": _Entry("transform", "transform", "Split landed events into the tables, and fill the marts."),
    "status": _Entry(
        "status", "status", "Show the numbers of messages, their places, and whether anything is missing."
    ),
    "sql": _Entry("sql", "sql", "Run a query and print its rows."),
    "report": _Entry("report", "report", "Write the results of a period as one HTML page, to read or to forward."),
    "bi": _Entry("bi", "bi", "BI tools: dashboards on the marts."),
    "schema": _Entry(
        "tables",
        "schema",
        "List the tables, or show the columns of some tables.",
    ),
    "url": _Entry("access", "url", 'Print the URL of the database, for psql "$(loader url)".'),
    "source": _Entry("sources", "source", "Sources: senders of events, each with a schema."),
    "key": _Entry("sources", "key", "Write keys: secrets with which senders prove their source."),
    "quarantine": _Entry(
        "quarantine", "quarantine", "Messages that could not land: list, show, correct, retry and discard them."
    ),
    "reader": _Entry(
        "access", "reader", "Readers: database roles for BI tools, which read the tables of sources and nothing else."
    ),
    "serve": _Entry(
        "serve",
        "serve",
        "Accept events over HTTP from Segment's libraries, Iterable's webhooks and Segment's webhooks.",
    ),
    "schedule": _Entry("schedule", "schedule", "Run the transform whenever events have landed, until stopped."),
    "destination": _Entry("destinations", "destination", "Destinations: systems that get the landed events."),
    "forward": _Entry("forward", "forward", "Deliver landed events to the destinations, until stopped."),
    "scaffold": _Entry(
        "tables",
        "scaffold",
        "Write a dbt model (.sql and .yml) for an event without a model, from its recorded properties.",
    ),
    "dbt-sources": _Entry(
        "tables", "dbt_sources", "Write a dbt package that declares all tables as sources, for analysts' projects."
    ),
    "widen": _Entry(
        "transform",
        "widen",
        "Give waiting columns their wider type: make views again, rewrite large tables.",
    ),
    "index": _Entry("tables", "index", "Build the indexes that runs have left, because the table is large."),
    "rescan": _Entry("tables", "rescan", "Rebuild the record of collections and properties from the landed events."),
    "spool": _Entry("spool", "spool", "The spool: events that wait on this machine's disk."),
    "warehouse-id": _Entry(
        "spool", "warehouse_id", "Print the id of this warehouse, which each segment of a spool carries."
    ),
    "migrate": _Entry("migrate", "migrate", "Migrate the schema raw to this version of the loader."),
}


class _LazyCommands(Mapping[str, click.Command]):
    """The commands by name; the lookup of a command imports its module."""

    def __getitem__(self, name: str) -> click.Command:
        entry = _COMMANDS[name]
        command = getattr(import_module(f"loader.cli.{entry.module}"), entry.name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table names nothing else
        complete_help(name, command)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class Commands(click.Group):
    """The group of all commands, with settings and exit codes in its help, and errors without tracebacks."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands in the order of their use, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the settings and exit codes after the commands."""
        with formatter.section("Settings, from the environment"):
            formatter.write_dl(
                [(name, f"{text} [{default}]" if default else text) for name, default, text in describe()]
            )
        with formatter.section("Exit codes"):
            codes = [("0", "done"), ("1", "work failed"), ("2", "wrong use")]
            formatter.write_dl([*codes, ("3", "loaded, with some messages in quarantine")])

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order of their use."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command, and show an error of the loader as one line without a traceback."""
        output.configure_warnings()
        for problem in unknown_variables():
            output.note(f"Warning: {problem}")
        try:
            return super().invoke(ctx)
        except LoaderError as error:
            output.note(f"Error: {error}")
            sys.exit(error.exit_code)
        except click.ClickException as error:
            # The error quotes arguments, which may be file names with control characters. `note` escapes these.
            shown = io.StringIO()
            error.show(shown)
            output.note(shown.getvalue().rstrip("\n"))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            output.note("Stopped. Committed work is kept. Run the same command again to continue.")
            sys.exit(130)


@click.group(
    cls=Commands,
    commands=cast("MutableMapping[str, click.Command]", _LazyCommands()),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="loader")
def main() -> None:
    """A warehouse for Iterable's messaging events, on your own PostgreSQL."""
