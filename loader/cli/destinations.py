"""Defines `loader destination`, the commands for the systems that get the landed events."""

import sys
from dataclasses import asdict
from typing import Any

import click
import msgspec

from loader.cli import context, output
from loader.destinations.filters import (
    TYPES,
    Filters,
    read_condition,
    read_filters,
    read_renaming,
    read_sample,
    stored_filters,
)
from loader.destinations.options import KINDS, Options, check_options, is_place, read_options, stored_options
from loader.destinations.secret_files import is_readable_by_others
from loader.destinations.trial import try_destination
from loader.errors import UsageError
from loader.raw.destinations import (
    Destination,
    add_destination,
    change_filters,
    find_destination,
    list_destinations,
    pause_destination,
    remove_destination,
    resume_destination,
)
from loader.raw.sources import list_sources


@click.group()
def destination() -> None:
    """Destinations: systems that get the landed events."""


@destination.command(name="add")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="Kind of the destination.")
@click.option("--url", default="", help="URL of the receiver, or env:NAME or file:/path where the URL is.")
@click.option("--key", default="", metavar="PLACE", help="Place of the key: env:NAME or file:/path.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="PLACE",
    help="Place of the secrets that sign webhooks, one a line. Can be repeated.",
)
@click.option(
    "--segment-signature", default="", metavar="PLACE", help="Place of a secret for X-Signature, as Segment signs."
)
@click.option("--allow-http", is_flag=True, help="Allow an unencrypted connection in a private network.")
@click.option("--ca-file", default="", help="File with certificates to trust, instead of the system's.")
@click.option("--folder", default="", help="Folder of the files.")
@click.option("--lanes", type=click.IntRange(1, 64), default=1, help="Requests under way at once. [default: 1]")
@click.option("--rate", default="", help="Largest number of requests, such as 100/s or 30/m.")
@click.option("--batch", type=click.IntRange(1, 1000), help="Largest number of calls in a request.")
@click.option("--region", type=click.Choice(["us", "eu"]), default="us", help="Iterable: data centre. [default: us]")
@click.option(
    "--project",
    type=click.Choice(["hybrid", "userid", "email"]),
    default="hybrid",
    help="Iterable: type of the project. [default: hybrid]",
)
@click.option("--merge-nested-objects", is_flag=True, help="Iterable: merge objects of a profile, not replace them.")
@click.option("--prefer-user-id", is_flag=True, help="Iterable: let an e-mail project make users from user ids.")
@click.option("--create-fields/--no-create-fields", default=None, help="Iterable: may a call make new fields?")
@click.option(
    "--carts", type=click.Choice(["off", "on", "classic"]), default="off", help="Iterable: update carts. [default: off]"
)
@click.option(
    "--pages",
    type=click.Choice(["off", "named", "all"]),
    default="off",
    help="Iterable: send page and screen calls as events. [default: off]",
)
@click.option(
    "--alias",
    type=click.Choice(["off", "email"]),
    default="off",
    help="Iterable: change addresses by alias calls. [default: off]",
)
@click.option(
    "--group",
    type=click.Choice(["off", "fields"]),
    default="off",
    help="Iterable: write group traits into the profile. [default: off]",
)
@click.option("--purchase-event", default="Order Completed", help="Iterable: event that is a purchase.")
@click.option("--cart-event", default="Cart Updated", help="Iterable: event that updates the cart.")
@click.option(
    "--nulls",
    type=click.Choice(["omit", "send"]),
    default="omit",
    help="Iterable: leave out fields that are null, or send them. [default: omit]",
)
@click.option(
    "--long",
    type=click.Choice(["refuse", "cut"]),
    default="refuse",
    help="Iterable: refuse or cut texts over 32,000 characters. [default: refuse]",
)
@click.option(
    "--from",
    "begin",
    type=click.Choice(["now", "start"]),
    default="now",
    show_default=True,
    help="Begin with the events that land from now on, or with the first event of all.",
)
def destination_add(name: str, begin: str, rate: str, batch: int | None, **settings: Any) -> None:
    """Add a destination.

    Keys and secrets are given by their place. The database holds the place and never the secret.
    """
    kind = settings.pop("kind")
    options = Options(rate=read_rate(rate), batch=batch or 0, **settings)
    options = check_options(kind, options)
    if not name or not name.isprintable() or name != name.strip() or len(name) > 100:
        raise UsageError("The name of a destination has 1 to 100 visible characters.")
    with context.database() as (database, _), database.autocommit() as connection:
        add_destination(connection, name, kind, stored_options(options), {}, from_start=begin == "start")
    for reference in (options.key, *options.secrets, options.segment_signature):
        if reference and is_readable_by_others(reference):
            output.note(f"Warning: every user of this machine may read {reference.removeprefix('file:')}.")
    output.echo(f"Destination {name} is added. `loader forward` delivers, and so does `loader up`.")


@destination.command(name="list")
@context.as_json
def destination_list(*, as_json: bool) -> None:
    """List the destinations, with their state."""
    with context.database() as (database, _), database.autocommit() as connection:
        found = list_destinations(connection)
    rows = [
        {
            "name": each.name,
            "kind": each.kind,
            "state": describe_state(each),
            "since": each.state_since,
            "last delivery": each.last_delivered_at,
            "problem": each.last_error,
        }
        for each in found
    ]
    output.show_rows(
        rows, as_json=as_json, empty="There is no destination yet. `loader destination add` adds a destination."
    )


@destination.command(name="show")
@click.argument("name")
def destination_show(name: str) -> None:
    """Show the settings, filters and state of a destination as JSON."""
    with context.database() as (database, _), database.autocommit() as connection:
        found = find_destination(connection, name)
    shown = asdict(found)
    url = str(found.settings.get("url", ""))
    if url and not is_place(url):
        # The query of an address may contain a secret.
        shown["settings"]["url"] = url.partition("?")[0]
    output.echo_json(shown)


@destination.command(name="pause")
@click.argument("name")
def destination_pause(name: str) -> None:
    """Stop the delivery to a destination; its events wait in raw.events."""
    with context.database() as (database, _), database.autocommit() as connection:
        pause_destination(connection, find_destination(connection, name).id)
    output.echo(f"Destination {name} is paused. `loader destination resume` continues.")


@destination.command(name="resume")
@click.argument("name")
def destination_resume(name: str) -> None:
    """Continue the delivery to a destination, with the oldest event that waits."""
    with context.database() as (database, _), database.autocommit() as connection:
        resume_destination(connection, find_destination(connection, name).id)
    output.echo(f"Destination {name} is active.")


@destination.command(name="remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Remove it without a question.")
def destination_remove(name: str, *, yes: bool) -> None:
    """Remove a destination with its cursors and dead letters."""
    with context.database() as (database, _), database.autocommit() as connection:
        found = find_destination(connection, name)
        if not yes:
            click.confirm(f"Remove destination {name}, with its cursors and dead letters?", abort=True, err=True)
        remove_destination(connection, found.id)
    output.echo(f"Destination {name} is removed.")


@destination.command(name="filter")
@click.argument("name")
@click.option("--sources", multiple=True, metavar="SCHEMA", help="Only calls of this source. Can be repeated.")
@click.option("--types", multiple=True, type=click.Choice(TYPES), help="Only calls of this type. Can be repeated.")
@click.option("--events", multiple=True, metavar="PATTERN", help="Only events of this name, such as 'Email *'.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="No events of this name.")
@click.option("--where", multiple=True, metavar="CONDITION", help="Only calls that meet 'properties.plan = pro'.")
@click.option("--sample", default="", help="Share of the users whose calls go, such as 10%.")
@click.option("--drop", multiple=True, metavar="PATH", help="Leave out a value, such as context.ip.")
@click.option("--only", multiple=True, metavar="PATH", help="Keep no other values in properties, traits and context.")
@click.option("--hash", multiple=True, metavar="PATH", help="Send the SHA-256 of a value, such as properties.email.")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Send an event under another name.")
@click.option("--native/--no-native", default=None, help="Send Iterable's own body along.")
@click.option("--clear", is_flag=True, help="Remove the present filters first.")
def destination_filter(name: str, *, clear: bool, **given: Any) -> None:
    """Change which calls a destination gets, and their shape.

    Each option replaces the present filter of its kind. A change acts from the next window, and never sends a call
    again.
    """
    with context.database() as (database, _), database.autocommit() as connection:
        found = find_destination(connection, name)
        filters = Filters() if clear else read_filters(found.filters)
        changes: dict[str, Any] = {
            part: given[part]
            for part in ("sources", "types", "events", "exclude", "drop", "only", "hash")
            if given[part]
        }
        if given["where"]:
            changes["where"] = tuple(read_condition(text) for text in given["where"])
        if given["rename"]:
            changes["rename"] = read_renaming(given["rename"])
        if given["sample"]:
            changes["sample"] = read_sample(given["sample"])
        if given["native"] is not None:
            changes["native"] = given["native"]
        filters = msgspec.structs.replace(filters, **changes)
        if clear or changes:
            change_filters(connection, found.id, stored_filters(filters))
        with database.begin() as transaction:
            known = {each.schema for each in list_sources(transaction)}
    for schema in sorted(set(filters.sources) - known):
        output.note(f"There is no source with the schema {schema} yet. `loader source list` shows the schemas.")
    output.echo_json(stored_filters(filters))


@destination.command(name="test")
@click.argument("name")
@click.option("--send", is_flag=True, help="Send one marked event to the receiver.")
def destination_test(name: str, *, send: bool) -> None:
    """Show how a destination would get the last 20 events, one call a line.

    With --send, the receiver gets one event named `Loader Test`, and the command shows the answer.
    """
    with context.database() as (database, _), database.autocommit() as connection:
        found = find_destination(connection, name)
        read_options(found.settings)
        trial = try_destination(connection, found, send=send)
    for body in trial.bodies:
        output.echo_exact(body.decode())
    output.note(f"{len(trial.bodies)} of the last {trial.events} events pass the filters.")
    if trial.reply:
        output.note(f"The receiver's answer: {trial.reply}")
    if send and not trial.is_accepted:
        sys.exit(1)


def describe_state(found: Destination) -> str:
    """Return the state of a destination in a few words."""
    return f"{found.state} ({found.pause_reason})" if found.pause_reason else found.state


def read_rate(text: str) -> float:
    """Read a number of requests such as `100/s` or `30/m`; an empty text stands for no limit.

    Raises:
        UsageError: The text is not such a number.
    """
    number, _, unit = text.partition("/")
    seconds = {"": 1, "s": 1, "m": 60, "h": 3600}.get(unit)
    try:
        rate = float(number) / seconds if text and seconds else 0.0
    except ValueError:
        rate = 0.0
    if text and not 0 < rate <= 1_000_000:
        raise UsageError(f"{text!r} is not a rate. Write a rate such as 100/s or 30/m.")
    return rate
