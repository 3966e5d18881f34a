"""Defines `loader bi`, the commands for BI tools."""

from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from loader.bi.assets import read_assets
from loader.bi.bundle import Connection, make_files, zip_files
from loader.bi.reader import check_reader, find_main_currency
from loader.bi.superset_api import Superset
from loader.cli import context, output
from loader.errors import FileError, UsageError
from loader.postgres.database import Database, connection_environment, libpq_url, url_of_role
from loader.postgres.embedded import EmbeddedServer
from loader.raw.readers import default_reader_url
from loader.report.marts import find_marts
from loader.runtime.terminal import count
from loader.settings import Settings

# Superset shows this text in place of a password, and asks for the password of a connection that has it.
_MASK = "XXXXXXXXXX"


@click.group()
def bi() -> None:
    """BI tools: dashboards on the marts."""


@bi.command(name="superset")
@click.option("--source", help="Name or schema of the source [default: the only source with marts].")
@click.option("--url", default="http://localhost:8088", show_default=True, help="Address of Superset.")
@click.option(
    "--user", default="admin", show_default=True, help="User of Superset; LOADER_SUPERSET_PASSWORD has the password."
)
@click.option(
    "--zip",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a file for the import in Superset's pages instead. The file has no password; Superset asks for it.",
)
@click.pass_context
def superset(called: click.Context, source: str | None, url: str, user: str, path: Path | None) -> None:
    """Import dashboards on the marts into Apache Superset, and print their addresses.

    The dashboards show emails, campaigns, deliverability, channels and revenue. The command also makes the connection
    and the datasets. A repeated import overwrites its own dashboards, so save your changes under other names. Superset
    connects with the URL of a reader, which LOADER_READER_URL has.
    """
    if path and called.get_parameter_source("url") is ParameterSource.COMMANDLINE:
        raise UsageError("--zip writes a file and --url imports into a Superset. Give one of them.")
    assets = read_assets()
    with context.database(for_reader=True) as (database, settings):
        connection = _find_connection(database, settings, source, list(assets.datasets))
        if path:
            reader = connection_environment(connection.url)["PGUSER"]
            masked = replace(connection, url=url_of_role(connection.url, reader, _MASK))
            _write(path, zip_files(make_files(assets, masked)))
            return
        importing = Superset(url)
        importing.log_in(user, _superset_password(settings, user))
        importing.check_connection(connection.url)
        files = make_files(assets, connection)
        importing.import_assets(zip_files(files))
        dashboards = [content for name, content in files.items() if name.startswith("dashboards/")]
        for dashboard in dashboards:
            output.echo_exact(f"{importing.url}/superset/dashboard/{dashboard['slug']}/")
        output.note(
            f"Imported {count(len(dashboards), 'dashboard')} with {count(len(assets.charts()), 'chart')} on the marts "
            f"in {connection.marts_schema}."
        )
        if database.embedded:
            output.note(
                f"The embedded database stops {output.duration(settings.embedded_idle)} after its last use, and "
                "Superset cannot start it. For more than a trial, set DATABASE_URL."
            )


def _find_connection(database: Database, settings: Settings, source: str | None, marts: list[str]) -> Connection:
    """Return the marts of a source, and the URL with which Superset connects.

    Raises:
        MartsError: The source has no marts.
        SourceError: There is no such source, or the source must be named.
        UsageError: There is no URL of a reader, or its role is not suitable.
    """
    with database.connect(autocommit=True) as connection:
        found = find_marts(connection, source, is_reader=database.is_reader)
        marts_schema = f"{found.source_schema}_marts"
        if given := settings.reader_url.get_secret_value():
            url = libpq_url(given, "LOADER_READER_URL")
        elif database.embedded:
            url = default_reader_url(connection, database.url, EmbeddedServer(settings.home).folder)
        elif database.is_reader:
            url = database.url
        else:
            raise UsageError(
                "Superset needs the URL of a reader. `loader reader add bi` makes a reader and prints its URL. Set "
                "LOADER_READER_URL to that URL."
            )
        catalog = check_reader(connection, url, marts_schema, marts)
        currency = find_main_currency(connection, marts_schema)
    return Connection(
        url=url,
        catalog=catalog,
        source=found.source,
        source_schema=found.source_schema,
        marts_schema=marts_schema,
        model=found.model,
        currency=currency,
    )


def _superset_password(settings: Settings, user: str) -> str:
    """Return the password of the user of Superset, from the setting or from a person at a terminal."""
    if password := settings.superset_password.get_secret_value():
        return password
    if not click.get_text_stream("stdin").isatty():
        raise UsageError(f"Set LOADER_SUPERSET_PASSWORD to the password of the user {user} of Superset.")
    entered: str = click.prompt(f"Password of the user {user} of Superset", hide_input=True, err=True)
    return entered


def _write(path: Path, archive: bytes) -> None:
    try:
        path.write_bytes(archive)
    except OSError as error:
        raise FileError(
            f"The dashboards cannot be written to {path}: {error.strerror}. Choose a file with --zip."
        ) from None
    output.echo_exact(str(path))
    output.note("In Superset: Dashboards, Import dashboards, this file. Superset asks for the password of the reader.")
