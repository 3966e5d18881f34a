"""Opens the database of the settings for the time of a command, and finds the source that a command names."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from loader.postgres.database import Database, open_database
from loader.raw.sources import find_source
from loader.settings import Settings, read_settings

# Files were loaded, or messages retried, and some messages are in quarantine.
EXIT_QUARANTINED = 3

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
vars_option = click.option(
    "--vars",
    "variables",
    metavar="YAML",
    help="Variables of the marts, as YAML or as @ and the path of a file [default: LOADER_VARS].",
)


def with_variables(settings: Settings, variables: str | None) -> Settings:
    """Return the settings with the variables of a command line, if it has some."""
    return settings if variables is None else settings.model_copy(update={"vars": variables})


@contextmanager
def database(*, for_reader: bool = False) -> Iterator[tuple[Database, Settings]]:
    """Open the database for a command.

    Args:
        for_reader: The command also works with the URL of a reader.

    Raises:
        LoaderError: A setting is not valid, or the database cannot be used.
    """
    settings = read_settings()
    with open_database(settings, for_reader=for_reader) as opened:
        yield opened, settings


def find_schema(opened: Database, source: str | None) -> str:
    """Return the schema of a source that a command names; None names the only source.

    Raises:
        SourceError: The source does not exist, or there are several sources and `source` is None.
    """
    with opened.begin() as connection:
        return find_source(connection, source)
