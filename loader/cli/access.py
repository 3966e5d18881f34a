"""Defines `loader url` and `loader reader`, the commands for connection URLs and readers."""

import shlex

import click

from loader.cli import context, output
from loader.postgres.database import connection_environment
from loader.postgres.embedded import EmbeddedServer
from loader.raw.readers import add_reader, default_reader_url, list_readers, remove_reader

_AS_ADMINISTRATOR = (
    "The role in DATABASE_URL may not create or drop this role. Run the SQL above as an administrator of the database."
)


@click.command()
@click.option(
    "--env", "as_environment", is_flag=True, help="Print shell variables of the loader's role, for psql and dbt."
)
@click.option("--owner", is_flag=True, help="Print the URL of the loader's role, which may change everything.")
def url(*, as_environment: bool, owner: bool) -> None:
    """Print the URL of the database, for psql "$(loader url)".

    For the embedded database, the URL is that of a role that only reads tables. With DATABASE_URL set, the command
    prints that URL.
    """
    with context.database(for_reader=True) as (database, settings):
        if as_environment:
            for name, value in connection_environment(database.url).items():
                output.echo_exact(f"export {name}={shlex.quote(value)}")
        elif owner or not database.embedded:
            output.echo_exact(database.url)
        else:
            with database.autocommit() as connection:
                output.echo_exact(default_reader_url(connection, database.url, EmbeddedServer(settings.home).folder))


@click.group()
def reader() -> None:
    """Readers: database roles for BI tools, which read the tables of sources and nothing else."""


@reader.command(name="add")
@click.argument("name")
@click.option("--source", "sources", multiple=True, help="Only this source. The option can be repeated. [default: all]")
def reader_add(name: str, sources: tuple[str, ...]) -> None:
    """Make a role that only reads tables, and print its URL. The URL is shown only once.

    The role reads present and later tables. Without --source it reads later sources too.
    """
    with context.database() as (database, _), database.autocommit() as connection:
        schemas = [context.find_schema(database, source) for source in sources]
        made = add_reader(connection, database.url, name, schemas)
    if made.statements:
        output.echo_exact(made.statements.rstrip("\n"))
        output.note(f"{_AS_ADMINISTRATOR} Then connect with this URL, which is shown only now: {made.url}")
    else:
        output.echo_exact(made.url)
        output.note(f"Reader {name} reads {', '.join(schemas) or 'every source'}. The URL is shown only now.")


@reader.command(name="list")
@context.as_json
def reader_list(*, as_json: bool) -> None:
    """List the readers and their sources."""
    with context.database() as (database, _), database.autocommit() as connection:
        output.show_records(
            list_readers(connection),
            as_json=as_json,
            empty="There is no reader yet. `loader reader add NAME` adds a reader.",
        )


@reader.command(name="remove")
@click.argument("name")
def reader_remove(name: str) -> None:
    """End a reader's sessions and drop its role."""
    with context.database() as (database, _), database.autocommit() as connection:
        statements = remove_reader(connection, name)
    if statements:
        output.echo_exact(statements.rstrip("\n"))
        output.note(_AS_ADMINISTRATOR)
    else:
        output.note(f"Reader {name} is removed.")
