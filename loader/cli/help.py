"""Adds examples and exit codes to the help of each command; the examples work as typed."""

from collections.abc import Iterator

import click

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("loader demo",),
    "up": ("loader up", "loader up --port 8123 --every 2s"),
    "load": (
        "loader load events.ndjson",
        "loader load --format iterable-export exports/",
        "loader load --format iterable-export --type emailOpen part-1.csv",
        "gzip -dc events.ndjson.gz | loader load -",
    ),
    "transform": ("loader transform", "loader transform --select email_opened --full-refresh"),
    "status": ("loader status", "loader status --json"),
    "sql": (
        'loader sql "select count(*) from iterable.email_opened"',
        'loader sql --format csv "select * from iterable.tracks" > tracks.csv',
        'echo "select 1" | loader sql -',
        'loader sql --write "create schema if not exists reports"',
    ),
    "report": ("loader report", "loader report --from 2026-03-01 --to 2026-03-31 --output march.html"),
    "bi superset": (
        "loader bi superset --zip dashboards.zip",
        "loader bi superset --url http://localhost:8088 --source Iterable",
    ),
    "schema": ("loader schema", "loader schema iterable.email_opened"),
    "url": ("loader url", 'eval "$(loader url --env)"'),
    "source add": (
        "KEY=$(loader source add Shop)",
        "loader source add 'My Shop' --schema shop_2 --label environment:prod",
    ),
    "source list": ("loader source list",),
    "key add": ("KEY=$(loader key add Iterable)", "loader key add Iterable --label webhooks"),
    "key list": ("loader key list",),
    "key revoke": ("loader key revoke 1",),
    "quarantine list": ("loader quarantine list", "loader quarantine list --reason invalid_json --limit 5"),
    "quarantine show": ("loader quarantine show 1 > message.json",),
    "quarantine retry": ("loader quarantine retry --all", "loader quarantine retry 1 --file mended.json"),
    "quarantine discard": ("loader quarantine discard --reason invalid_json --yes",),
    "reader add": ("loader reader add bi --source Iterable",),
    "reader list": ("loader reader list",),
    "reader remove": ("loader reader remove bi",),
    "serve": ("loader serve", "loader serve --port 8123 --processes 2"),
    "schedule": ("loader schedule", "loader schedule --every 1m"),
    "destination add": (
        "loader destination add lake --kind files --folder lake --from start",
        "loader destination add cdp --kind segment --url env:CDP_URL --key env:CDP",
        "loader destination add ops --kind webhook --url env:HOOK --secret env:SECRET",
        "loader destination add crm --kind iterable --project email --key env:CRM",
    ),
    "destination list": ("loader destination list",),
    "destination show": ("loader destination show cdp",),
    "destination pause": ("loader destination pause cdp",),
    "destination resume": ("loader destination resume cdp",),
    "destination filter": (
        "loader destination filter cdp --events 'Email *' --types track",
        "loader destination filter cdp --where 'properties.plan = pro'",
        "loader destination filter cdp --hash properties.email --drop context.ip",
    ),
    "destination test": ("loader destination test cdp",),
    "forward run": ("loader forward run", "loader forward run --once lake"),
    "forward replay": ("loader forward replay lake --since 2026-03-01 --rate 10/s",),
    "forward status": ("loader forward status", "loader forward status --json"),
    "forward dead list": ("loader forward dead list cdp",),
    "forward dead show": ("loader forward dead show cdp 1",),
    "forward dead retry": ("loader forward dead retry cdp --reason too_large",),
    "forward dead drop": ("loader forward dead drop cdp --yes",),
    "destination remove": ("loader destination remove cdp --yes",),
    "scaffold": ('loader scaffold "Order Placed" --source Iterable --folder models',),
    "dbt-sources": ("loader dbt-sources", "loader dbt-sources --folder ../analytics/iterable_sources"),
    "widen": ("loader widen",),
    "index": ("loader index",),
    "rescan": ("loader rescan",),
    "spool list": ("loader spool list",),
    "spool land": ("loader spool land --all",),
    "warehouse-id": ("loader warehouse-id",),
    "migrate": ("loader migrate",),
}

_DONE = "done"
_FAILED = "the work failed"
_WRONG = "wrong use"
# The codes of commands for which a code has a more exact meaning, or that have further codes.
_CODES: dict[str, dict[int, str]] = {
    "load": {1: "a file could not be loaded completely", 3: "loaded, with messages in quarantine"},
    "status": {1: "the conservation law does not hold, or the work failed"},
    "transform": {1: "a table was not filled"},
    "index": {1: "an index could not be built"},
    "widen": {1: "a column still waits for its wider type"},
    "quarantine retry": {3: "some messages are still refused"},
    "spool land": {3: "landed, with messages in quarantine"},
    "destination test": {1: "the receiver did not accept the event, or the work failed"},
    "forward run": {
        0: "stopped by a signal, or no event waits",
        1: "with --once: a destination is paused or failing",
        143: "stopped at once by a second signal",
    },
    "up": {0: "stopped in order", 1: "stopped at once by a second signal, or the work failed"},
    "serve": {0: "stopped in order", 143: "stopped at once by a second signal"},
    "schedule": {0: "stopped in order", 143: "stopped at once by a second signal"},
}


def exit_codes(path: str) -> dict[int, str]:
    """Return the exit codes of a command, such as `key add`, with their meanings."""
    return dict(sorted(({0: _DONE, 1: _FAILED, 2: _WRONG} | _CODES.get(path, {})).items()))


def walk(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with the words that run it, without `loader`; groups come before their commands."""
    for name, command in group.commands.items():
        path = f"{before}{name}"
        yield path, command
        if isinstance(command, click.Group):
            yield from walk(command, f"{path} ")


def complete_help(path: str, command: click.Command) -> None:
    """Add examples, exit codes and a complete summary to a command and the commands of its group.

    Args:
        path: The words that run the command, without `loader`.
        command: The command.
    """
    below = walk(command, f"{path} ") if isinstance(command, click.Group) else ()
    for words, each in [(path, command), *below]:
        each.short_help = (each.help or "").split("\n\n")[0].replace("\n", " ")
        if not isinstance(each, click.Group):
            examples = "\n".join(f"  {example}" for example in EXAMPLES.get(words, ()))
            codes = "\n".join(f"  {code}  {meaning}" for code, meaning in exit_codes(words).items())
            # click does not rewrap a paragraph after the mark \b.
            each.epilog = f"\b\nExamples:\n{examples}\n\n\b\nExit codes:\n{codes}"
