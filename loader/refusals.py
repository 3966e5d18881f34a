"""`loader quarantine discard`: messages that nobody wants leave the quarantine, and stay counted."""

import sys

import click

from loader import display, session
from loader.errors import UsageError
from loader.terminal import count


@click.command()
@click.option("--load", type=int, help="Only messages of this load, a number in raw.loads.")
@click.option("--reason", help="Only messages with this reason code.")
@click.option("--path", help="Only messages of this file, or of the files in this folder.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(load: int | None, reason: str | None, path: str | None, *, yes: bool) -> None:
    """Remove messages from the quarantine for good, and keep only their number.

    A message must fit all the options given. The numbers stay in raw.discarded and in the conservation law.
    """
    from loader.discards import Selection, count_messages, discard_messages  # noqa: PLC0415

    if load is None and reason is None and path is None:
        raise UsageError("Say which messages: --load, --reason or --path, or several of them.")
    selection = Selection(load, reason, path)
    with session.database() as (database, _), session.autocommit(database) as connection:
        messages, size = count_messages(connection, selection)
        if messages and not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"{count(messages, 'message')} would be gone for good. Confirm it with --yes.")
            question = f"Discard {count(messages, 'message')} of {count(size, 'byte')} for good?"
            click.confirm(question, abort=True, err=True)
        messages, size = discard_messages(connection, selection) if messages else (0, 0)
    display.echo(f"{count(messages, 'message')} of {count(size, 'byte')} discarded")
