"""Defines `loader load`, which lands files of events in the schema raw."""

import sys

import click

from loader.cli import context, output
from loader.errors import UsageError
from loader.files.exports import export_naming, find_entrances
from loader.files.load import Load
from loader.files.streams import CALLS, find_files, first_names
from loader.raw.landing import LandingResult
from loader.runtime.terminal import count


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--source", help="Name of the source; needed when there are several.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["segment", "iterable-export"]),
    default="segment",
    show_default=True,
    help="Content of the files: Segment's tracking calls, or events that Iterable exported.",
)
@click.option(
    "--type",
    "kind",
    help="Type of an export's events, such as emailSend, if the file's name does not contain the type.",
)
@click.option("--no-check", is_flag=True, help="Load a file although none of its first 1,000 lines is an event.")
def load(paths: tuple[str, ...], source: str | None, file_format: str, kind: str | None, *, no_check: bool) -> None:
    """Land files of events.

    PATH is a file, a glob pattern, a folder, or - for standard input. The loader recognises plain, gzip and zstd by
    the bytes. A file that was loaded before changes nothing. A file that has grown is continued, and so is a stopped
    load. A message that cannot land goes to quarantine, and the others land: exit code 3.

    Tracking calls are one JSON object a line. Iterable's exports may be lines of JSON, CSV or Parquet.

    In a folder, only files with the names of event files are loaded. A file without an event in its first 1,000 lines
    is refused before anything lands.
    """
    if kind and file_format == "segment":
        raise UsageError("--type is the type of an export's events: add --format iterable-export.")
    found = find_files(paths, CALLS if file_format == "segment" else export_naming(kind))
    files = found.paths
    if found.left_out:
        left_out = count(len(found.left_out), "file")
        output.note(
            f"Skipped {left_out} in folders, because their names are not those of event files: "
            f"{first_names(found.left_out, 3)}"
        )
    entrances = {} if file_format == "segment" else find_entrances(files, kind)
    with context.database() as (database, settings), database.autocommit() as connection:
        schema = context.find_schema(database, source)
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
                warehouse_id=settings.segment_warehouse_id,
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
        output.echo(f"{count(unchanged, 'file')} loaded before and unchanged since")
    if unchanged < len(outcomes):
        output.echo("\n".join(output.landed_lines(total)))
    if "failed" in outcomes:
        output.note(f"{count(outcomes.count('failed'), 'file')} of {len(outcomes)} could not be loaded completely.")
        sys.exit(1)
    if total.quarantined:
        output.note("`loader quarantine list` shows the refused messages and the reasons.")
        if total.quarantined > total.rows:
            output.note(
                f"More messages were refused than landed. To discard the refused messages: {first_names(discards, 3)}"
            )
        sys.exit(context.EXIT_QUARANTINED)
