"""Shared parts of the tests of conformance vectors: writing, loading and finding an event."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from loader.settings import Settings
from tests.conftest import loader_here

Rows = psycopg.Connection[dict[str, Any]]

BASE: dict[str, Any] = {
    "type": "track",
    "userId": "u1",
    "event": "Email Opened",
    "context": {"library": {"name": "x", "version": "1"}},
    "properties": {},
}
LONG = "x" * 600


def event(message_id: str | None, **fields: Any) -> dict[str, Any]:
    """Return the base event with other fields; None removes a field."""
    merged = BASE | ({"messageId": message_id} if message_id else {}) | fields
    return {name: value for name, value in merged.items() if value is not None}


def load_and_transform(settings: Settings, folder: Path, events: Sequence[dict[str, Any]], *, code: int = 0) -> None:
    """Load events with the command line, check its exit code, and run the transform."""
    path = folder / "vectors.ndjson"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in events), encoding="utf-8")
    loader = loader_here(settings)
    loaded = loader("load", str(path))
    assert loaded.returncode == code, loaded.stderr
    done = loader("transform")
    assert done.returncode == 0, done.stderr


def reading(settings: Settings) -> AbstractContextManager[Rows]:
    """Yield a connection for `find` and `column_types`."""
    return psycopg.connect(settings.database_url, row_factory=dict_row, autocommit=True)


def find(rows: Rows, message_id: str, table: str = "email_opened") -> dict[str, Any]:
    """Return the one row of an event."""
    found = rows.execute(f"select * from iterable.{table} where id = %s", (message_id,)).fetchall()
    assert len(found) == 1
    return found[0]


def column_types(rows: Rows, table: str) -> dict[str, str]:
    """Return the columns of a table with their types."""
    found = rows.execute(
        "select attname, format_type(atttypid, atttypmod) as type from pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
        (f"iterable.{table}",),
    )
    return {row["attname"]: row["type"] for row in found}
