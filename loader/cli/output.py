"""Formats the output of the commands: tables for people, JSON for scripts, and the progress of loads.

Data goes to stdout, and everything else goes to stderr. Names, ids and values come from outside and may contain
control characters for a terminal. Tables, lines and notes therefore show control characters as escapes. JSON holds
control characters as JSON escapes, and `echo_exact` changes nothing.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from loader.runtime.terminal import count, escape_controls, escape_json_controls, shorten

if TYPE_CHECKING:
    # Every command imports this module, but most commands need none of these types.
    from loader.files.load import Progress
    from loader.raw.landing import LandingResult
    from loader.transform.columns import Column
    from loader.transform.dbt import TableFilled
    from loader.transform.status import Status

# Largest number of rows in each list of `loader status`, and of characters in a value. `--json` prints everything.
_SHOWN_ROWS = 20
_SHOWN_CHARACTERS = 200

# Shortest time between two progress lines, in seconds. The lines go to logs, which more lines would fill.
_LINE_SECONDS = 10.0


def echo(message: str = "") -> None:
    """Write lines for a person to stdout."""
    click.echo(escape_controls(message, keep="\n"))


def echo_exact(message: str) -> None:
    """Write data to stdout without any change."""
    # With `color`, click keeps sequences that look like terminal colours.
    click.echo(message, color=True)


def echo_json(value: Any) -> None:
    """Write a value to stdout as JSON."""
    echo_exact(to_json(value))


def echo_message(payload: bytes) -> None:
    """Write a message to stdout: its exact bytes, or on a terminal its text with escaped control characters."""
    if sys.stdout.isatty():
        echo(payload.decode(errors="backslashreplace"))
    else:
        sys.stdout.buffer.write(payload + b"\n")


def note(message: str) -> None:
    """Write lines to stderr."""
    click.echo(escape_controls(message, keep="\n"), err=True)


class _EscapingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record), keep="\n")


def configure_warnings() -> None:
    """Escape control characters in warnings that reach stderr because the command keeps no log."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_EscapingFormatter())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table, with the keys of the first row as the heading."""
    return grid(list(rows[0]), (row.values() for row in rows)) if rows else ""


def grid(names: Sequence[str], rows: Iterable[Iterable[Any]], *, exact: bool = False) -> str:
    """Return a heading and rows as a table, with columns of numbers aligned to the right.

    Args:
        names: The heading.
        rows: The values of each row, in the order of the heading.
        exact: Show values as the database prints them, and not in the form for people, such as `1,000`.
    """
    names = [_one_line(name) for name in names]
    values = [list(row) for row in rows]
    cells = [[cell(value, exact=exact) for value in row] for row in values]
    right = [_is_numeric([row[i] for row in values]) for i in range(len(names))]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(names)]

    def line(texts: Sequence[str]) -> str:
        padded = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), line(["-" * width for width in widths]), *map(line, cells)])


def to_json(value: Any) -> str:
    """Return a value as JSON."""
    return escape_json_controls(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def duration(seconds: float) -> str:
    """Return a time span in at most two units, e.g. `3 min 20 s`."""
    seconds = max(seconds, 0)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = int(seconds % size // smaller_size)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def landed_lines(landed: "LandingResult") -> list[str]:
    """Return the numbers of landed and refused messages, one line for each number."""
    lines = [f"{count(landed.rows, 'event')} landed"]
    lines += [f"{count(number, 'message')} in quarantine: {reason}" for reason, number in landed.reasons.most_common()]
    if landed.repaired:
        lines.append(f"{landed.repaired:,} of these landed with replaced characters")
    return lines


class ProgressDisplay:
    """Shows the progress of a load: a bar on a terminal, or a line every 10 seconds in a log."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._shown = 0
        self._last = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        """Show the progress, at most once in `_LINE_SECONDS` if there is no bar."""
        if self._terminal and progress.bytes_total:
            self._show_bar(progress)
        elif time.monotonic() - self._last >= _LINE_SECONDS:
            self._last = time.monotonic()
            note(self._line(progress))

    def close(self) -> None:
        """End the line of the bar, so that later output starts on a new line."""
        if self._bar is not None:
            self._bar.render_finish()

    def _show_bar(self, progress: "Progress") -> None:
        if self._bar is None:
            self._bar = click.progressbar(
                length=progress.bytes_total,
                file=sys.stderr,
                show_eta=True,
                item_show_func=lambda text: text or "",
            )
        self._bar.update(progress.bytes_read - self._shown, ", ".join([self._rate(progress), *self._refused(progress)]))
        self._shown = progress.bytes_read

    @staticmethod
    def _rate(progress: "Progress") -> str:
        return f"{progress.rate():,.0f} events/s"

    @staticmethod
    def _refused(progress: "Progress") -> list[str]:
        refused = progress.landed.quarantined
        return [f"{refused:,} in quarantine"] if refused else []

    @staticmethod
    def _line(progress: "Progress") -> str:
        parts = [f"{count(progress.landed.rows, 'event')} landed", *ProgressDisplay._refused(progress)]
        parts.append(ProgressDisplay._rate(progress))
        if progress.bytes_total:
            share = progress.bytes_read / progress.bytes_total
            left = (time.monotonic() - progress.started) * (1 - share) / share if share else 0
            parts += [f"{share:.0%}", f"{duration(left)} left"]
        return ", ".join(parts)


def cell(value: Any, *, exact: bool = False) -> str:
    """Return a value as one line of visible text; `grid` describes `exact`."""
    if value is None:
        return ""
    if exact:
        return _exact_cell(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, dict):
        return _one_line(" ".join(f"{name}:{part}" for name, part in value.items()))
    return _one_line(value)


def _exact_cell(value: Any) -> str:
    if isinstance(value, bool | dict | list):
        return escape_controls(json.dumps(value, default=str, ensure_ascii=False))
    return _one_line(value)


def _one_line(value: Any) -> str:
    return escape_controls(" ".join(str(value).split()))


def _is_numeric(values: Sequence[Any]) -> bool:
    given = [value for value in values if value is not None]
    return bool(given) and all(isinstance(value, int | float | Decimal) for value in given)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def show_rows(rows: Sequence[dict[str, Any]], *, as_json: bool, empty: str) -> None:
    """Print rows as a table or as JSON; `empty` is the text that replaces an empty table."""
    if as_json:
        echo_json(rows)
    else:
        echo(table(rows) or empty)


def show_records(records: Sequence[Any], *, as_json: bool, empty: str) -> None:
    """Print dataclass instances as a table or as JSON, as `show_rows` does."""
    show_rows([asdict(record) for record in records], as_json=as_json, empty=empty)


def show_columns(columns: "Sequence[Column]") -> None:
    """Print the columns of tables, one table after the other."""
    for number, ((source, name), group) in enumerate(groupby(columns, lambda column: (column.source, column.table))):
        rows = [
            {
                "column": column.column,
                "type": column.type,
                "origin": column.origin,
                "filled": None if column.filled is None else f"{column.filled:.0%}",
                "path": column.path,
                "first seen": column.first_seen,
                "first event": column.first_event,
            }
            for column in group
        ]
        echo(f"{chr(10) if number else ''}{source}.{name}\n{table(rows)}")


def show_failures(failed: "Sequence[TableFilled]") -> None:
    """Print the tables that a run left as they were, with each reason once."""
    reasons: dict[str, list[str]] = {}
    for each in failed:
        reasons.setdefault(each.error or each.held, []).append(f"{each.source}.{each.table}")
    for reason, (first, *others) in reasons.items():
        were = f"and {count(len(others), 'other table')} were left as they were" if others else "was left as it was"
        note(f"Error: {first} {were}: {reason}")


def table_filled(filled: "TableFilled") -> dict[str, Any]:
    """Return the results of a run for one table, as a row of output."""
    return {
        "table": f"{filled.source}.{filled.table}",
        "rows added": filled.rows,
        "there before": filled.duplicates,
        "new columns": len(filled.new_columns),
        "seconds": filled.duration.total_seconds(),
        "": "failed" if filled.error or filled.held else "",
    }


def scheduler(row: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a scheduler, as a row of output."""
    return {
        "host": row["host"],
        "process": str(row["process_id"]),
        "every": duration(row["every_seconds"]),
        "state": row["state"] if row["alive"] else f"not seen for {duration(row['seen_seconds_ago'])}",
        "last success": row["last_success_at"],
        "next run": row["next_run_at"] if row["alive"] else None,
        "failures in a row": row["failures"],
        "last error": row["last_error"],
    }


def show_status(status: "Status") -> None:
    """Print the state of the warehouse for a person."""
    if not status.sources:
        echo("There is no source yet. `loader source add Iterable` adds a source.")
        return
    echo(_headline(status))

    for law in status.conservation:
        echo(f"\nSource {law.source}: {count(law.accepted, 'message')} accepted =")
        parts = {
            "in collections": law.in_collections,
            "in tracks only": law.in_tracks_only,
            "in quarantine": law.quarantined,
            "discarded from quarantine": law.discarded,
            "duplicates of an id": law.duplicates,
            "calls other than track": law.other_calls,
            "kept out of warehouses by their integrations": law.excluded,
            "waiting": law.waiting,
        }
        width = max(len(f"{number:,}") for number in parts.values())
        for name, number in parts.items():
            echo(f"  {number:>{width},}  {name}")
        if law.shared_ids:
            echo(
                f"tracks lacks {count(law.shared_ids, 'row')}: an event of another name has landed first with the same "
                "id."
            )
        if not law.holds:
            note(
                f"Error: the numbers of source {law.source} do not add up: {law.missing_in_collections:,} rows are "
                f"missing in collections, {law.missing_in_tracks:,} in tracks. Another program changed tables or "
                "raw.events. `loader transform --full-refresh --select TABLE` rebuilds a table, unless rows would be "
                "lost."
            )

    if status.rescan_wanted:
        ask_for_rescan()
    filled = [t for t in status.tables if t.rows or t.waiting]
    if filled:
        rows = [{"table": f"{t.source}.{t.table}", "rows": t.rows, "waiting": t.waiting} for t in filled]
        echo("\n" + _first_rows(rows, most=2 * _SHOWN_ROWS))
    empty = len(status.tables) - len(filled)
    if empty:
        echo(f"and {count(empty, 'empty table')}")
    for title, rows in (
        ("In quarantine (`loader quarantine list`)", status.quarantine),
        ("Values that their column cannot hold, or cannot hold with all digits (raw.mismatches)", status.mismatches),
        (
            "Tables with fewer or more rows than events in raw.events (with more rows, missing is negative)",
            status.unequal_tables,
        ),
        (
            "Rebuilds that deleted rows whose events were gone (repeat the rebuild to end this message)",
            status.lossy_rebuilds,
        ),
        ("Marts", [_mart(row) for row in status.marts]),
        ("Variables of the marts", _mart_variables(status.marts)),
        ("Sources without marts, because of the name of the schema", status.mart_clashes),
        ("Tables that the last run could not fill, rebuild or change (raw.held_tables)", status.held_tables),
        ("Columns to be added or widened (`loader widen` changes them or names the obstacle)", status.waiting_columns),
        ("Indexes to be built (`loader index` builds them beside readers and runs)", status.waiting_indexes),
        ("Properties without a column of their own (raw.collisions)", status.collisions),
        (
            "Events in tracks only, without a table yet (limits: LOADER_NEW_TABLES an hour, LOADER_TABLES in all)",
            status.without_table,
        ),
        ("Columns found last (`loader schema` shows all)", status.found),
        ("Spool files of another warehouse, not landed (`loader spool list`)", status.foreign_segments),
        ("Destinations (`loader forward status`)", status.destinations),
        ("Deliveries", [_delivery(row) for row in status.deliveries if not row["is_finished"]]),
        ("Deliveries whose numbers of events do not add up: events were lost or counted twice", status.lost_deliveries),
        ("Forwarded calls that came back, and did not land", status.returned_calls),
        ("Last transforms", status.runs),
        ("Schedulers", [scheduler(row) for row in status.schedulers]),
    ):
        if rows:
            echo(f"\n{title}\n{_first_rows(rows)}")


def _delivery(row: dict[str, Any]) -> dict[str, Any]:
    """Return the progress of a delivery as a row of output."""
    oldest = row["oldest_seconds"]
    shown = {name: row[name] for name in ("destination", "source", "waiting")}
    shown["oldest"] = None if oldest is None else duration(oldest)
    return shown | {name: row[name] for name in ("delivered", "filtered", "repeated", "dead")}


def _mart(row: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the marts of a source, as a row of output."""
    return {
        "source": row["source"],
        "last run": row["filled"],
        "events waiting": row["waiting"],
        "the oldest for": None if row["age_seconds"] is None else duration(row["age_seconds"]),
        "failed": row["failed"],
        "last error": row["last_error"],
    }


def _mart_variables(marts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the variables in force, as rows of output; sources whose marts had the same values share rows."""
    sources: dict[tuple[str, str], list[str]] = {}
    for row in marts:
        for name, value in sorted((row["variables"] or {}).items()):
            sources.setdefault((name, json.dumps(value, ensure_ascii=False)), []).append(row["source"])
    return [
        {"variable": name, "value": value, "sources": ", ".join(given)}
        for (name, value), given in sorted(sources.items())
    ]


def ask_for_rescan() -> None:
    """Print that landed events need `loader rescan`."""
    note(
        "Error: an older version of the loader has landed events without a record of their properties. Those "
        "properties have no columns yet. Run `loader rescan`, then `loader transform`."
    )


def _headline(status: "Status") -> str:
    """Return one line with the numbers of landed and waiting events, and the share of messages in quarantine."""
    if status.freshness_seconds is None:
        waiting = "every event is in its table"
    else:
        waiting = f"{count(status.waiting, 'event')} waiting, the oldest for {duration(status.freshness_seconds)}"
    headline = f"{count(status.events_landed, 'event')} landed; {waiting}"
    if refused := sum(law.quarantined for law in status.conservation):
        accepted = sum(law.accepted for law in status.conservation)
        headline += f"; {count(refused, 'message')} of {accepted:,} ({_share(refused, accepted)}) in quarantine"
    return f"{headline}."


def _share(part: int, whole: int) -> str:
    """Return a share in whole per cent, rounded down, so that only all messages are 100 %.

    A share below 1 % is `less than 1 %`, because 0 % would mean no message.
    """
    if part * 100 < whole:
        return "less than 1 %"
    return f"{part * 100 // whole} %"


def _first_rows(rows: Sequence[dict[str, Any]], most: int = _SHOWN_ROWS) -> str:
    """Return the first rows as a table of limited size, with the number of omitted rows."""
    shown = [{name: _shortened(value) for name, value in row.items()} for row in rows[:most]]
    more = f"\nand {len(rows) - most:,} more (`loader status --json` shows all)" if len(rows) > most else ""
    return table(shown) + more


def _shortened(value: Any) -> Any:
    return shorten(value, _SHOWN_CHARACTERS) if isinstance(value, str) else value
