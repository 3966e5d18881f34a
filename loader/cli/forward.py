"""Defines `loader forward`, which delivers events to destinations, and its commands for replays and dead letters."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import click

from loader.cli import context, output
from loader.cli.destinations import describe_state, read_rate
from loader.destinations.worker import Worker
from loader.errors import UsageError
from loader.raw.dead_letters import drop_letters, list_letters, retry_letters, show_letter
from loader.raw.delivery_windows import add_replay, count_replay, read_cursors
from loader.raw.destinations import find_destination, list_destinations, read_progress
from loader.runtime.logs import configure_logs
from loader.runtime.signals import stopped_by_signals
from loader.runtime.supervisor import follow_supervisor
from loader.runtime.terminal import count
from loader.settings import read_settings


class _RunByDefault(click.Group):
    """A group whose command `run` also runs without its name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the command in front of its arguments."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault)
def forward() -> None:
    """Deliver landed events to the destinations, until stopped.

    `loader forward` is short for `loader forward run`.
    """


@forward.command(name="run")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--once", is_flag=True, help="End when no event waits, or a minute after a receiver begins to fail.")
def forward_run(names: tuple[str, ...], *, once: bool) -> None:
    """Deliver landed events to the destinations, until stopped.

    Several workers may run, on any machines: each destination has one worker, and the others stand by. The first
    SIGTERM or Ctrl-C lets the requests under way finish.

    With --once, a destination that takes nothing for a minute is left with its events, and the exit code is 1.
    """
    settings = read_settings()
    configure_logs()
    follow_supervisor()
    with stopped_by_signals() as stop:
        Worker(settings, names, once=once).run(stop)
    if once:
        with context.database() as (database, _), database.autocommit() as connection:
            found = [each for each in list_destinations(connection) if not names or each.name in names]
        stuck = [each for each in found if each.state != "active"]
        for each in stuck:
            reason = f": {each.last_error.rstrip('.')}" if each.last_error else ""
            output.note(
                f"Destination {each.name} has not got all events. The destination is {describe_state(each)}{reason}."
            )
            if each.waits_for_person:
                output.note(f"`loader destination resume {each.name}` continues.")
        if stuck:
            output.note("The events wait for the next `loader forward`.")
            sys.exit(1)


@forward.command(name="replay")
@click.argument("name")
@click.option("--since", metavar="TIME", help="Only events from this time on, in ISO 8601.")
@click.option("--until", metavar="TIME", help="Only events before this time.")
@click.option(
    "--by",
    type=click.Choice(["received", "time"]),
    default="received",
    show_default=True,
    help="The time that counts: of receipt, or of the event itself.",
)
@click.option("--sources", multiple=True, metavar="SCHEMA", help="Only events of this source. Can be repeated.")
@click.option("--events", multiple=True, metavar="PATTERN", help="Only events of this name. Can be repeated.")
@click.option("--dead", is_flag=True, help="Send the dead letters again, and nothing else.")
@click.option("--rate", default="", help="Largest number of requests of the replay, such as 100/s.")
def forward_replay(
    name: str,
    *,
    since: str | None,
    until: str | None,
    by: str,
    sources: Sequence[str],
    events: Sequence[str],
    rate: str,
    dead: bool,
) -> None:
    """Send events again that a destination has passed, beside the live delivery.

    The worker sends them; the replay continues after a restart.
    """
    begin, end = _read_time(since), _read_time(until)
    selection = {
        key: value
        for key, value in {
            "since": begin and begin.isoformat(),
            "until": end and end.isoformat(),
            "by": by,
            "events": list(events),
            "rate": read_rate(rate),
        }.items()
        if value
    }
    with context.database() as (database, _), database.autocommit() as connection:
        found = find_destination(connection, name)
        if dead:
            _say_retried(retry_letters(connection, found.id, None), name)
            return
        if not (begin or end):
            raise UsageError("Give --since or --until. A replay without both would send every event again.")
        number = add_replay(connection, found.id, sources, selection)
        if not number:
            raise UsageError(f"Destination {name} has passed no event of these sources.")
        cursors = read_cursors(connection, found.id, number)
        number_of_events = sum(count_replay(connection, cursor.source, selection) for cursor in cursors)
        output.note(f"{count(number_of_events, 'event')} in this time.")
        if found.kind == "webhook":
            output.note("A receiver that does not look at `webhook-id` gets these events twice.")
        if found.kind == "iterable" and not events:
            output.note("Profiles get the values of this time again. With --events, no profile is updated.")
    output.echo(f"Replay {number} of {name} is ready. `loader forward` sends its events.")


@forward.command(name="status")
@context.as_json
def forward_status(*, as_json: bool) -> None:
    """Show the progress and the state of each destination, with the reason of a pause or failure."""
    with context.database() as (database, _), database.autocommit() as connection:
        found = {each.name: each for each in list_destinations(connection)}
        progress = read_progress(connection)
    if as_json:
        output.echo_json(
            {
                "destinations": [asdict(each) for each in found.values()],
                "deliveries": [asdict(each) for each in progress],
            }
        )
        return
    rows = [
        {
            "destination": each.destination,
            "source": each.source,
            "replay": each.replay or None,
            "state": "finished" if each.is_finished else describe_state(found[each.destination]),
            "waiting": each.waiting,
            "oldest": None if each.oldest_seconds is None else output.duration(each.oldest_seconds),
            "delivered": each.delivered,
            "filtered": each.filtered,
            "repeated": each.repeated,
            "dead": each.dead,
        }
        for each in progress
        if each.destination in found
    ]
    output.echo(output.table(rows) or "There is no destination yet. `loader destination add` adds a destination.")
    for each in found.values():
        if each.last_error:
            output.echo(f"{each.name}: {each.last_error}")
        if each.notes:
            told = ", ".join(f"{note} {number:,}" for note, number in each.notes.items())
            output.echo(f"{each.name}: {told}")


@forward.group(name="dead")
def forward_dead() -> None:
    """Dead letters: events that a destination did not accept."""


_reason_option = click.option("--reason", help="Only dead letters with this reason.")


@forward_dead.command(name="list")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Largest number of rows.")
@context.as_json
def dead_list(name: str, limit: int, *, as_json: bool) -> None:
    """List the dead letters of a destination, the oldest first."""
    with context.database() as (database, _), database.autocommit() as connection:
        letters = list_letters(connection, find_destination(connection, name).id, limit)
    output.show_records(letters, as_json=as_json, empty=f"Destination {name} has no dead letters.")


@forward_dead.command(name="show")
@click.argument("name")
@click.argument("number", type=int)
def dead_show(name: str, number: int) -> None:
    """Show the event of a dead letter as it landed, and the receiver's answer.

    The event goes to stdout, the answer to stderr.
    """
    with context.database() as (database, _), database.autocommit() as connection:
        found = show_letter(connection, find_destination(connection, name).id, number)
    if found is None:
        raise UsageError(f"There is no dead letter {number}. `loader forward dead list {name}` shows the numbers.")
    event, answer = found
    output.echo_message(event)
    if answer:
        output.note(answer)


@forward_dead.command(name="retry")
@click.argument("name")
@_reason_option
def dead_retry(name: str, reason: str | None) -> None:
    """Send dead letters again, in landing order; accepted events leave the list."""
    with context.database() as (database, _), database.autocommit() as connection:
        _say_retried(retry_letters(connection, find_destination(connection, name).id, reason), name)


@forward_dead.command(name="drop")
@click.argument("name")
@_reason_option
@click.option("--yes", is_flag=True, help="Delete them without a question.")
def dead_drop(name: str, reason: str | None, *, yes: bool) -> None:
    """Delete dead letters from the list; the events stay in raw.events."""
    with context.database() as (database, _), database.autocommit() as connection:
        found = find_destination(connection, name)
        if not yes:
            click.confirm(f"Delete the dead letters of {name}?", abort=True, err=True)
        number = drop_letters(connection, found.id, reason)
    output.echo(f"{count(number, 'dead letter')} deleted.")


def _say_retried(number: int, name: str) -> None:
    output.echo(f"{count(number, 'dead letter')} of {name} will be sent again by `loader forward`.")


def _read_time(text: str | None) -> datetime | None:
    """Read a time in ISO 8601; a time without an offset is UTC.

    Raises:
        UsageError: The text is not such a time.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a time. Write a time such as 2026-03-01 or 2026-03-01T12:00:00Z.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
