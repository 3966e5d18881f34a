"""Defines `loader quarantine`, the commands that list, show, correct, retry and discard quarantined messages."""

import sys

import click

from loader.cli import context, output
from loader.errors import UsageError
from loader.raw.discards import Selection, count_messages, discard_messages
from loader.raw.quarantine import find_message, list_messages
from loader.raw.retry import open_messages, retry
from loader.runtime.terminal import count, shorten


@click.group()
def quarantine() -> None:
    """Messages that could not land: list, show, correct, retry and discard them."""


@quarantine.command(name="list")
@click.option("--reason", help="Only messages with this reason code.")
@click.option("--all", "resolved", is_flag=True, help="Also messages that have landed since.")
@click.option("--limit", default=50, show_default=True, help="Largest number of messages to list.")
@context.as_json
def quarantine_list(reason: str | None, limit: int, *, resolved: bool, as_json: bool) -> None:
    """List messages, the newest first."""
    with context.database() as (database, _), database.begin() as connection:
        messages = list_messages(connection, reason=reason, resolved=resolved, limit=limit)
    rows = [
        {
            "id": message.id,
            "reason": message.reason,
            "detail": message.detail if as_json else shorten(message.detail, 60),
            "source": message.source,
            "path": message.path,
            "offset": message.byte_offset,
            "bytes": len(message.payload),
            "received_at": message.received_at,
            "landed": message.resolution,
        }
        for message in messages
    ]
    output.show_rows(rows, as_json=as_json, empty="Nothing is in quarantine.")


@quarantine.command(name="show")
@click.argument("number", type=int)
def quarantine_show(number: int) -> None:
    """Print a message's original bytes to stdout, and its reason to stderr."""
    with context.database() as (database, _), database.begin() as connection:
        message = find_message(connection, number)
    place = f"{message.path} at byte {message.byte_offset}" if message.path else message.entrance
    output.note(f"{message.reason}: {' '.join(message.detail.split())}")
    output.note(f"from {place}, received {message.received_at:%Y-%m-%d %H:%M:%S %Z}")
    output.echo_message(message.payload)


@quarantine.command(name="retry")
@click.argument("numbers", type=int, nargs=-1, metavar="[NUMBER]...")
@click.option("--reason", help="All open messages with this reason code.")
@click.option("--all", "every", is_flag=True, help="All open messages.")
@click.option(
    "--file",
    "replacement",
    type=click.File("rb"),
    help="File with a corrected message, which lands in place of the original. - is standard input.",
)
def quarantine_retry(
    numbers: tuple[int, ...], reason: str | None, replacement: click.utils.LazyFile | None, *, every: bool
) -> None:
    """Try to land messages again, as they are or corrected.

    Each message is read by the rules of its entrance. The body of a batch call or a webhook may hold several calls.
    Each valid call lands, and each other call becomes a separate message. No limit of size or number applies.
    """
    if bool(numbers) + bool(reason) + every != 1:
        raise UsageError("Select messages by their numbers, by --reason or by --all.")
    if replacement is not None and len(numbers) != 1:
        raise UsageError("--file corrects one message: give the number of that message.")
    with context.database() as (database, settings), database.autocommit() as connection:
        chosen = list(numbers) or open_messages(connection, reason)
        corrected = replacement.read() if replacement else None
        outcomes = retry(connection, chosen, corrected, settings.segment_warehouse_id)
    refused = sum(each.refused for each in outcomes)
    output.echo(f"{count(sum(each.landed for each in outcomes), 'message')} landed, {refused:,} still refused")
    for each in outcomes:
        if each.refused or each.landed > 1:
            output.note(str(each))
    if refused:
        sys.exit(context.EXIT_QUARANTINED)


@quarantine.command()
@click.option("--load", type=int, help="Only messages of this load, a number in raw.loads.")
@click.option("--reason", help="Only messages with this reason code.")
@click.option("--path", help="Only messages of this file, or of the files in this folder.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def discard(load: int | None, reason: str | None, path: str | None, *, yes: bool) -> None:
    """Remove messages from the quarantine for good, and keep only their number.

    A message must fit all given options. The numbers stay in raw.discarded and in the conservation law.
    """
    if load is None and reason is None and path is None:
        raise UsageError("Select messages by --load, --reason or --path, or by several of these options.")
    selection = Selection(load, reason, path)
    with context.database() as (database, _):
        with database.begin() as connection:
            messages, size = count_messages(connection, selection)
        if messages and not yes:
            if not sys.stdin.isatty():
                raise UsageError(
                    f"{count(messages, 'message')} would be deleted for good. Confirm the deletion with --yes."
                )
            question = f"Discard {count(messages, 'message')} of {count(size, 'byte')} for good?"
            click.confirm(question, abort=True, err=True)
        if messages:
            with database.begin() as connection:
                messages, size = discard_messages(connection, selection)
    output.echo(f"{count(messages, 'message')} of {count(size, 'byte')} discarded")
