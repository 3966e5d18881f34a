"""Defines `loader source` and `loader key`, the commands for sources and write keys."""

import click

from loader.cli import context, output
from loader.errors import UsageError
from loader.raw.sources import add_key, add_source, find_source, list_keys, list_sources, revoke_key


@click.group()
def source() -> None:
    """Sources: senders of events, each with a schema."""


@source.command(name="add")
@click.argument("name")
@click.option("--schema", default="", help="Schema of its tables. [default: derived from the name]")
@click.option("--label", "labels", multiple=True, metavar="KEY:VALUE", help="A label. The option can be repeated.")
@context.as_json
def source_add(name: str, schema: str, labels: tuple[str, ...], *, as_json: bool) -> None:
    """Add a source and print its write key. The key is shown only once.

    The key goes to stdout, the words around it to stderr.
    """
    for label in labels:
        if label.count(":") != 1:
            raise UsageError(f"--label {label} must look like environment:prod.")
    with context.database() as (database, _), database.begin() as connection:
        schema, key = add_source(connection, name, schema=schema, labels=dict(label.split(":") for label in labels))
    if as_json:
        output.echo_json({"name": name, "schema": schema, "write_key": key})
    else:
        output.note(f"Source {name} feeds schema {schema}. Its write key, shown only now:")
        output.echo_exact(key)


@source.command(name="list")
@context.as_json
def source_list(*, as_json: bool) -> None:
    """List the sources."""
    with context.database() as (database, _), database.begin() as connection:
        output.show_records(
            list_sources(connection),
            as_json=as_json,
            empty="There is no source yet. `loader source add Iterable` adds a source.",
        )


@click.group()
def key() -> None:
    """Write keys: secrets with which senders prove their source."""


@key.command(name="add")
@click.argument("source_name", metavar="[SOURCE]", required=False)
@click.option("--label", default="", help="Purpose of the key.")
@context.as_json
def key_add(source_name: str | None, label: str, *, as_json: bool) -> None:
    """Make a write key for a source and print the key. The key is shown only once.

    The key goes to stdout, the words around it to stderr. SOURCE may be left out when there is only one source.
    """
    with context.database() as (database, _), database.begin() as connection:
        name = source_name or find_source(connection, None, naming="`loader key add NAME`")
        made = add_key(connection, name, label=label)
    if as_json:
        output.echo_json({"source": name, "write_key": made})
    else:
        output.note(f"A write key for source {name}, shown only now:")
        output.echo_exact(made)


@key.command(name="list")
@click.option("--source", "source_name", help="Only keys of this source.")
@context.as_json
def key_list(source_name: str | None, *, as_json: bool) -> None:
    """List the write keys, with their last use."""
    with context.database() as (database, _), database.begin() as connection:
        output.show_records(
            list_keys(connection, source_name),
            as_json=as_json,
            empty="There is no write key yet. `loader key add` makes a write key.",
        )


@key.command(name="revoke")
@click.argument("number", type=int)
def key_revoke(number: int) -> None:
    """Revoke a write key, by its number in `loader key list`."""
    with context.database() as (database, _), database.begin() as connection:
        revoke_key(connection, number)
    output.echo(f"Key {number} is revoked.")
