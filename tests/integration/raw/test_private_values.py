"""Values of events stay private: no error, log or status shows them to other users."""

import json
import stat
from pathlib import Path

import psycopg
import pytest

from loader.errors import without_values
from loader.postgres.database import Database
from loader.settings import Settings
from tests.conftest import loader_here
from tests.support.factories import insert_payload

SECRET = "maria-7731"
MESSAGES = (
    'invalid input syntax for type bigint: "maria"',
    'value "4310021" is out of range for type integer',
    "Database Error in model a\n  new row violates it\n  DETAIL:  Failing row contains (maria, (b)).\n  compiled at x",
    "reaching postgresql://me:word@host/base failed",
    'column "campaign_id" is of type integer[]\nCONTEXT:  SQL function "f"',
    "no such thing LINE 3: insert into x values ('maria')",
    "the key ('maria') and (maria@example.com)",
)


def readable_by_others(home: Path) -> list[Path]:
    """Return the files below a folder that another user could read after entering the folder."""
    found = []
    for path in home.iterdir():
        mode = path.stat().st_mode
        if path.is_dir() and mode & stat.S_IXOTH:
            found += readable_by_others(path)
        elif path.is_file() and mode & stat.S_IROTH:
            found.append(path)
    return found


def columns_with(connection: psycopg.Connection, value: str) -> set[str]:
    """Return the columns of the schema raw whose text contains a value."""
    columns = connection.execute(
        "select table_name, column_name from information_schema.columns where table_schema = 'raw'"
        " and table_name not in (select viewname from pg_views where schemaname = 'raw')"
    ).fetchall()
    return {
        f"{table}.{column}"
        for table, column in columns
        if connection.execute(
            f'select from raw."{table}" where "{column}"::text like %s limit 1', [f"%{value}%"]
        ).fetchone()
        is not None
    }


def test_c5_an_error_about_a_row_repeats_nothing_of_the_row(
    small: Database, small_settings: Settings, tmp_path: Path
) -> None:
    """The value is not in files that other users can read, in raw beside the events, or in the output of commands."""
    run = loader_here(small_settings)
    with small.connect(autocommit=True) as connection:
        connection.execute(f"""
            alter table iterable.email_opened add constraint no_maria check (user_id <> '{SECRET}');
            alter table raw.events add constraint no_mario check (payload ->> 'userId' <> 'mario');
        """)
        insert_payload(connection, "e1", {"type": "track", "event": "Email Opened", "userId": SECRET})
        transform = run("transform")
        assert transform.returncode == 1
        assert 'violates check constraint "no_maria"' in transform.stderr
        call = {"type": "track", "event": "Email Opened", "userId": "mario", "properties": {"a": SECRET}}
        (tmp_path / "refused.ndjson").write_text(json.dumps(call) + "\n")
        loaded = run("load", str(tmp_path / "refused.ndjson"))
        assert loaded.returncode == 3
        shown = [transform, loaded, run("status"), run("status", "--json"), run("quarantine", "list", "--json")]
        assert [done for done in shown if SECRET in done.stdout + done.stderr] == []
        assert {name for name in columns_with(connection, SECRET) if not name.startswith("events")} == set()
        stored = connection.execute("select reason from raw.held_tables").fetchall()
        assert len(stored) == 1
        assert "no_maria" in stored[0][0]
    folder = small_settings.home / "dbt"
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "logs", folder / "target")} == {0o700}
    assert [path for path in readable_by_others(small_settings.home) if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("message", MESSAGES)
def test_c5_the_database_takes_values_out_of_a_message_as_python_does(database: Database, message: str) -> None:
    """The dbt project stores the result of one function, and the loader shows the result of the other."""
    with database.connect() as connection:
        row = connection.execute("select raw.without_values(%s)", [message]).fetchone()
    assert row == (without_values(message),)
    assert "maria" not in without_values(message)
