"""The command line: reads arguments, calls the module that does the work, shows what came of it.

Data goes to stdout, progress and notes to stderr. Exit code 0: done; 1: work failed; 2: wrong use; 3: files were
loaded, but some of their messages are in quarantine.
"""

import io
import sys

import click
import psycopg
from sqlalchemy.exc import DBAPIError

from loader import __version__, access, console, display, keyring, layout, refusals, running, session, spooled
from loader.database import migrate, open_database
from loader.errors import LoaderError, UsageError, without_values
from loader.guidance import complete_help
from loader.settings import describe, read_settings, unknown_variables
from loader.terminal import count, shorten

EXIT_QUARANTINED = 3


class Commands(click.Group):
    """The group of all commands; its help also lists the settings, and its errors are for people."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the settings and exit codes after the commands."""
        with formatter.section("Settings, from the environment"):
            formatter.write_dl(
                [(name, f"{text} [{default}]" if default else text) for name, default, text in describe()]
            )
        with formatter.section("Exit codes"):
            codes = [("0", "done"), ("1", "work failed"), ("2", "wrong use")]
            formatter.write_dl([*codes, ("3", "loaded, with some messages in quarantine")])

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order of their use."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; an error of ours is one line, never a traceback."""
        display.configure_warnings()
        for problem in unknown_variables():
            display.note(f"Warning: {problem}")
        try:
            return super().invoke(ctx)
        except LoaderError as error:
            display.note(f"Error: {error}")
            sys.exit(error.exit_code)
        except (psycopg.Error, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            display.note(f"Error: The database failed: {without_values(reason)}")
            sys.exit(1)
        except click.ClickException as error:
            # It quotes arguments, and a shell makes arguments of the names of files.
            shown = io.StringIO()
            error.show(shown)
            display.note(shown.getvalue().rstrip("\n"))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            display.note("Stopped. What is committed is kept; the same command goes on from there.")
            sys.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="loader")
def main() -> None:
    """A warehouse for Iterable's messaging events, on your own PostgreSQL."""


for command in (
    running.up,
    running.serve,
    running.schedule,
    console.sql,
    keyring.source,
    keyring.key,
    access.url,
    access.reader,
    layout.rescan,
    layout.schema,
    layout.widen,
    layout.scaffold,
    spooled.spool,
    spooled.warehouse_id,
):
    main.add_command(command)


@main.command()
def demo() -> None:
    """Run the main job on sample events, in a database of its own, and show the tables."""
    from loader.demo import run_demo  # noqa: PLC0415

    run_demo(read_settings())


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--source", help="Name of the source; needed when there are several.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["segment", "iterable-export"]),
    default="segment",
    show_default=True,
    help="What the files hold: Segment's tracking calls, or events that Iterable exported.",
)
@click.option("--type", "kind", help="What an export holds, such as emailSend, where the file's name does not tell.")
@click.option("--no-check", is_flag=True, help="Load a file although none of its first 1,000 lines is an event.")
def load(paths: tuple[str, ...], source: str | None, file_format: str, kind: str | None, *, no_check: bool) -> None:
    """Land files of events.

    PATH is a file, a glob pattern, a folder, or - for standard input. Plain, gzip and zstd are told apart by their
    bytes. A file that was loaded before changes nothing; one that has grown, or whose load was stopped, goes on where
    it was. What cannot land goes to quarantine and costs its neighbours nothing: exit code 3 says so.

    Tracking calls come one JSON object a line. Iterable's exports may be lines of JSON, CSV or Parquet.

    Of a folder, only files whose names say that they hold events are loaded. A file whose first 1,000 lines hold no
    event is stopped before anything of it lands.
    """
    from loader.exports import export_naming, find_entrances  # noqa: PLC0415
    from loader.files import CALLS, find_files, first_names  # noqa: PLC0415
    from loader.landing import Landed  # noqa: PLC0415
    from loader.loading import Load  # noqa: PLC0415
    from loader.sources import find_source  # noqa: PLC0415

    if kind and file_format == "segment":
        raise UsageError("--type says what an export of Iterable's holds: give --format iterable-export too.")
    found = find_files(paths, CALLS if file_format == "segment" else export_naming(kind))
    files = found.paths
    if found.left_out:
        left_out = count(len(found.left_out), "file")
        display.note(f"Passed over {left_out} of folders, not called like events: {first_names(found.left_out, 3)}")
    entrances = {} if file_format == "segment" else find_entrances(files, kind)
    with session.database() as (database, settings), session.autocommit(database) as connection:
        with database.begin() as transaction:
            schema = find_source(transaction, source)
        progress = display.ProgressDisplay()
        total, outcomes, discards = Landed(), [], []
        try:
            loading = Load(
                database.url,
                connection,
                schema,
                workers=settings.workers,
                entrances=entrances,
                checked=not no_check,
                report=progress,
            )
            for loaded in loading.run(files):
                outcomes.append(loaded.outcome)
                total.add(loaded.landed)
                if loaded.landed.quarantined:
                    discards.append(f"`loader quarantine discard --load {loaded.number}`")
                if loaded.error:
                    progress.close()
                    display.note(f"Error: {loaded.error}")
        finally:
            progress.close()
    unchanged = outcomes.count("unchanged")
    if unchanged:
        display.echo(f"{count(unchanged, 'file')} loaded before, nothing new in {'it' if unchanged == 1 else 'them'}")
    if unchanged < len(outcomes):
        display.echo("\n".join(display.landed_lines(total)))
    if "failed" in outcomes:
        display.note(f"{count(outcomes.count('failed'), 'file')} of {len(outcomes)} could not be loaded whole.")
        sys.exit(1)
    if total.quarantined:
        display.note("`loader quarantine list` shows what was refused, and why.")
        if total.quarantined > total.rows:
            display.note(f"More was refused than landed. To discard it: {first_names(discards, 3)}")
        sys.exit(EXIT_QUARANTINED)


@main.command()
@click.option(
    "--select", multiple=True, help="Only this table, as `loader status` names it, or what a selector of dbt's names."
)
@click.option("--full-refresh", is_flag=True, help="Rebuild all rows in place from what has landed.")
@click.option(
    "--allow-loss", is_flag=True, help="Rebuild also where raw.events lacks events: their rows are deleted for good."
)
def transform(select: tuple[str, ...], *, full_refresh: bool, allow_loss: bool) -> None:
    """Split what has landed into the tables."""
    from loader.transform import log_file  # noqa: PLC0415
    from loader.transform import transform as run_transform  # noqa: PLC0415

    if allow_loss and not full_refresh:
        raise UsageError("--allow-loss needs --full-refresh: only a rebuild deletes rows.")
    with session.database() as (database, settings):
        filled = run_transform(database, settings, select=select, full_refresh=full_refresh, allow_loss=allow_loss)
        display.echo(display.table([display.table_filled(table) for table in filled]))
        for table in filled:
            if table.note:
                display.note(f"Note: {table.note}")
        layout.check_record(database)
        failed = [table for table in filled if table.error or table.held]
        for table in filled:
            for obstacle in table.obstacles:
                display.note(f"Warning: {table.source}.{table.table}: {obstacle}")
        display.show_failures(failed)
        if failed:
            display.note(
                f"The other tables are complete; run it again when it is mended. dbt's log: {log_file(settings)}"
            )
            sys.exit(1)


@main.command()
@session.as_json
def status(*, as_json: bool) -> None:
    """Show what came in, where it is, and whether anything is missing."""
    from loader.spool import spool_folder  # noqa: PLC0415
    from loader.status import read_readable_tables, read_status  # noqa: PLC0415

    with session.database(for_reader=True) as (database, settings), database.begin() as connection:
        if database.is_reader:
            tables = read_readable_tables(connection)
            if as_json:
                display.echo_json({"tables": tables})
            else:
                display.echo(display.table(tables))
            display.note("This role reads tables only. The rest of the status needs the URL of the loader's role.")
            return
        state = read_status(connection, spool_folder(settings))
    if as_json:
        display.echo_json(state.as_json())
    else:
        display.show_status(state)
    if state.rescan_wanted or not state.is_whole:
        sys.exit(1)


@main.command(name="migrate")
def migrate_command() -> None:
    """Bring the raw schema up to this version of the loader."""
    with open_database(read_settings(), migrate_behind=True) as database:
        _, now = migrate(database.engine)
        display.echo(f"The raw schema is at revision {now}.")
        layout.check_record(database)


@main.group()
def quarantine() -> None:
    """Messages that could not land, and the way back in."""


quarantine.add_command(refusals.discard)


@quarantine.command(name="list")
@click.option("--reason", help="Only those with this reason code.")
@click.option("--all", "resolved", is_flag=True, help="Also those that have landed since.")
@click.option("--limit", default=50, show_default=True, help="At most so many, the newest first.")
@session.as_json
def quarantine_list(reason: str | None, limit: int, *, resolved: bool, as_json: bool) -> None:
    """List messages, the newest first."""
    from loader.quarantine import list_messages  # noqa: PLC0415

    with session.database() as (database, _), session.autocommit(database) as connection:
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
    display.show_rows(rows, as_json=as_json, empty="Nothing is in quarantine.")


@quarantine.command(name="show")
@click.argument("number", type=int)
def quarantine_show(number: int) -> None:
    """Print a message's original bytes to stdout; what is wrong with it goes to stderr."""
    from loader.quarantine import find_message  # noqa: PLC0415

    with session.database() as (database, _), session.autocommit(database) as connection:
        message = find_message(connection, number)
    place = f"{message.path} at byte {message.byte_offset}" if message.path else message.entrance
    display.note(f"{message.reason}: {' '.join(message.detail.split())}")
    display.note(f"from {place}, received {message.received_at:%Y-%m-%d %H:%M:%S %Z}")
    display.echo_message(message.payload)


@quarantine.command(name="retry")
@click.argument("numbers", type=int, nargs=-1, metavar="[NUMBER]...")
@click.option("--reason", help="All open messages with this reason code.")
@click.option("--all", "every", is_flag=True, help="All open messages.")
@click.option(
    "--file", "replacement", type=click.File("rb"), help="A corrected message to land in its place; - is stdin."
)
def quarantine_retry(
    numbers: tuple[int, ...], reason: str | None, replacement: click.utils.LazyFile | None, *, every: bool
) -> None:
    """Try to land messages again, as they are or corrected.

    Each is read as it was when it came: the body of a batch or a webhook may hold several calls. Those that can land
    do, and the others are in quarantine by themselves. No limit of size or number applies.
    """
    from loader.quarantine import open_messages, retry  # noqa: PLC0415

    if bool(numbers) + bool(reason) + every != 1:
        raise UsageError("Say which messages: their numbers, or --reason, or --all.")
    if replacement is not None and len(numbers) != 1:
        raise UsageError("--file corrects one message: give its number.")
    with session.database() as (database, _), session.autocommit(database) as connection:
        chosen = list(numbers) or open_messages(connection, reason)
        outcomes = retry(connection, chosen, replacement.read() if replacement else None)
    refused = sum(each.refused for each in outcomes)
    display.echo(f"{count(sum(each.landed for each in outcomes), 'message')} landed, {refused:,} still refused")
    for each in outcomes:
        if each.refused or each.landed > 1:
            display.note(str(each))
    if refused:
        sys.exit(EXIT_QUARANTINED)


complete_help(main)

if __name__ == "__main__":
    main()
