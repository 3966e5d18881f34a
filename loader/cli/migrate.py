"""Defines `loader migrate`, which migrates the schema raw to this version of the loader."""

import click

from loader.cli import output
from loader.cli.status import check_record
from loader.postgres.database import migrate as migrate_schema
from loader.postgres.database import open_database
from loader.settings import read_settings


@click.command()
def migrate() -> None:
    """Migrate the schema raw to this version of the loader."""
    with open_database(read_settings(), migrate_behind=True) as database:
        _, now = migrate_schema(database.engine)
        output.echo(f"The raw schema is at revision {now}.")
        check_record(database)
