"""The command line: reads arguments, calls the module that does the work, shows what came of it.

Data goes to stdout, progress and notes to stderr. Exit code 0: done; 1: work failed; 2: wrong use; 3: files were
loaded, but some of their messages are in quarantine.
"""

import io
import sys

import click
import psycopg
from sqlalchemy.exc import DBAPIError

from loader import __version__
from loader.cli import access, context, output, quarantine, services, sources, spool, sql, tables
from loader.cli.help import complete_help
from loader.errors import LoaderError, UsageError, without_values
from loader.postgres.database import migrate, open_database
from loader.runtime.terminal import count
from loader.settings import describe, read_settings, unknown_variables


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
        output.configure_warnings()
        for problem in unknown_variables():
            output.note(f"Warning: {problem}")
        try:
            return super().invoke(ctx)
        except LoaderError as error:
            output.note(f"Error: {error}")
            sys.exit(error.exit_code)
        except (psycopg.Error, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            output.note(f"Error: The database failed: {without_values(reason)}")
            sys.exit(1)
        except click.ClickException as error:
            # It quotes arguments, and a shell makes arguments of the names of files.
            shown = io.StringIO()
            error.show(shown)
            output.note(shown.getvalue().rstrip("\n"))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            output.note("Stopped. Committed work is kept; the same command goes on from there.")
            sys.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="loader")
def main() -> None:
    """A warehouse for Iterable's messaging events, on your own PostgreSQL."""


for command in (
    services.up,
    services.serve,
    services.schedule,
    sql.sql,
    sources.source,
    sources.key,
    access.url,
    access.reader,
    tables.rescan,
    tables.schema,
    tables.widen,
    tables.scaffold,
    spool.spool,
    spool.warehouse_id,
):
    main.add_command(command)


@main.command()
def demo() -> None:
    """Run the main job on sample events, in a database of its own, and show the tables."""
    from loader.cli.demo import run_demo  # noqa: PLC0415

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
    from loader.files.exports import export_naming, find_entrances  # noqa: PLC0415
    from loader.files.load import Load  # noqa: PLC0415
    from loader.files.streams import CALLS, find_files, first_names  # noqa: PLC0415
    from loader.raw.landing import LandingResult  # noqa: PLC0415
    from loader.raw.sources import find_source  # noqa: PLC0415

    if kind and file_format == "segment":
        raise UsageError("--type says what an export of Iterable's holds: give --format iterable-export too.")
    found = find_files(paths, CALLS if file_format == "segment" else export_naming(kind))
    files = found.paths
    if found.left_out:
        left_out = count(len(found.left_out), "file")
        output.note(f"Passed over {left_out} of folders, not called like events: {first_names(found.left_out, 3)}")
    entrances = {} if file_format == "segment" else find_entrances(files, kind)
    with context.database() as (database, settings), context.autocommit(database) as connection:
        with database.begin() as transaction:
            schema = find_source(transaction, source)
        progress = output.ProgressDisplay()
        total, outcomes, discards = LandingResult(), [], []
        try:
            loading = Load(
                database.url,
                connection,
                schema,
                workers=settings.workers,
                lock_wait=settings.lock_wait,
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
                    output.note(f"Error: {loaded.error}")
        finally:
            progress.close()
    unchanged = outcomes.count("unchanged")
    if unchanged:
        output.echo(f"{count(unchanged, 'file')} loaded before, nothing new in {'it' if unchanged == 1 else 'them'}")
    if unchanged < len(outcomes):
        output.echo("\n".join(output.landed_lines(total)))
    if "failed" in outcomes:
        output.note(f"{count(outcomes.count('failed'), 'file')} of {len(outcomes)} could not be loaded whole.")
        sys.exit(1)
    if total.quarantined:
        output.note("`loader quarantine list` shows what was refused, and why.")
        if total.quarantined > total.rows:
            output.note(f"More was refused than landed. To discard it: {first_names(discards, 3)}")
        sys.exit(context.EXIT_QUARANTINED)


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
    from loader.transform.dbt import log_file  # noqa: PLC0415
    from loader.transform.dbt import transform as run_transform  # noqa: PLC0415

    if allow_loss and not full_refresh:
        raise UsageError("--allow-loss needs --full-refresh: only a rebuild deletes rows.")
    with context.database() as (database, settings):
        filled = run_transform(database, settings, select=select, full_refresh=full_refresh, allow_loss=allow_loss)
        output.echo(output.table([output.table_filled(table) for table in filled]))
        for table in filled:
            if table.note:
                output.note(f"Note: {table.note}")
        tables.check_record(database)
        failed = [table for table in filled if table.error or table.held]
        for table in filled:
            for obstacle in table.obstacles:
                output.note(f"Warning: {table.source}.{table.table}: {obstacle}")
        output.show_failures(failed)
        if failed:
            output.note(
                f"The other tables are complete; run it again when it is mended. dbt's log: {log_file(settings)}"
            )
            sys.exit(1)


@main.command()
@context.as_json
def status(*, as_json: bool) -> None:
    """Show what came in, where it is, and whether anything is missing."""
    from loader.buffer.spool import spool_folder  # noqa: PLC0415
    from loader.transform.status import read_readable_tables, read_status  # noqa: PLC0415

    with context.database(for_reader=True) as (database, settings), database.begin() as connection:
        if database.is_reader:
            readable = read_readable_tables(connection)
            if as_json:
                output.echo_json({"tables": readable})
            else:
                output.echo(output.table(readable))
            output.note("This role reads tables only. The rest of the status needs the URL of the loader's role.")
            return
        state = read_status(connection, spool_folder(settings))
    if as_json:
        output.echo_json(state.as_json())
    else:
        output.show_status(state)
    if state.rescan_wanted or not state.is_whole:
        sys.exit(1)


@main.command(name="migrate")
def migrate_command() -> None:
    """Bring the raw schema up to this version of the loader."""
    with open_database(read_settings(), migrate_behind=True) as database:
        _, now = migrate(database.engine)
        output.echo(f"The raw schema is at revision {now}.")
        tables.check_record(database)


main.add_command(quarantine.quarantine)

complete_help(main)
