"""The commands as people run them: their output, its stream and their exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from loader.settings import Settings
from tests.conftest import Loader, loader_command, loader_here, open_settings


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Return a file with two events of one collection, one of them twice, an event without a table, and a bad line."""
    lines = [
        {"type": "track", "event": "Email Opened", "userId": "u1", "messageId": "a", "properties": {"campaignId": 7}},
        {"type": "track", "event": "Email Opened", "userId": "u2", "messageId": "b", "properties": {"campaignId": "x"}},
        {"type": "track", "event": "Email Opened", "userId": "u1", "messageId": "a", "properties": {"campaignId": 8}},
        {"type": "track", "event": "Order Placed", "userId": "u1", "messageId": "c"},
        {"type": "identify", "userId": "u1", "messageId": "d", "traits": {"plan": "pro"}},
    ]
    path = tmp_path / "events.ndjson"
    path.write_text("\n".join([*map(json.dumps, lines), "{broken"]) + "\n", encoding="utf-8")
    return path


def test_load_transform_and_status_account_for_every_line(served_settings: Settings, events: Path) -> None:
    """The numbers of loaded, transformed and refused lines add up. Each command runs in its own process."""
    served_loader = loader_command(served_settings)
    loaded = served_loader("load", str(events))
    assert loaded.returncode == 3
    assert "5 events landed" in loaded.stdout
    assert "1 message in quarantine: invalid_json" in loaded.stdout

    before = json.loads(served_loader("status", "--json").stdout)
    assert before["waiting"] == 4
    assert before["freshness_seconds"] >= 0

    transformed = served_loader("transform")
    assert transformed.returncode == 0, transformed.stderr
    lines = {line.split()[0]: line.split()[1:3] for line in transformed.stdout.splitlines()[2:]}
    assert lines["iterable.email_opened"] == ["2", "1"]
    assert lines["iterable.tracks"] == ["3", "1"]
    assert lines["iterable.push_opened"] == ["0", "0"]
    assert lines["iterable.order_placed"] == ["1", "0"]
    assert len(lines) == 29

    status = json.loads(served_loader("status", "--json").stdout)
    law = status["conservation"][0]
    assert law == {
        "source": "iterable",
        "accepted": 6,
        "in_collections": 3,
        "in_tracks_only": 0,
        "quarantined": 1,
        "duplicates": 1,
        "other_calls": 1,
        "waiting": 0,
        "missing_in_collections": 0,
        "missing_in_tracks": 0,
        "shared_ids": 0,
        "discarded": 0,
        "unequal_tables": 0,
        "excluded": 0,
        "holds": True,
    }
    assert status["freshness_seconds"] is None
    assert status["mismatches"] == [
        {"source": "iterable", "table": "email_opened", "column": "campaign_id", "values": 1}
    ]
    assert status["runs"][0]["status"] == "success"
    assert {t["table"]: t["rows"] for t in status["tables"]}["email_opened"] == 2


def test_status_without_json_prints_text(served_loader: Loader, events: Path) -> None:
    """Without --json the same numbers are text, and stderr is empty."""
    served_loader("load", str(events))
    shown = served_loader("status")
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert "5 events landed; 4 events waiting" in shown.stdout
    assert "Source iterable: 6 messages accepted =" in shown.stdout
    assert "In quarantine" in shown.stdout


def test_status_fails_when_a_row_is_missing(served_loader: Loader, served_settings: Settings, events: Path) -> None:
    """Rows that were removed from a table change the numbers and the exit code. A rebuild restores the rows."""
    served_loader("load", str(events))
    served_loader("transform", "--select", "email_opened tracks")
    with psycopg.connect(served_settings.database_url) as connection:
        connection.execute("delete from iterable.email_opened where id = 'a'")
    broken = served_loader("status")
    assert broken.returncode == 1
    assert "1 rows are missing in collections" in broken.stderr
    served_loader("transform", "--full-refresh", "--select", "email_opened")
    assert served_loader("status").returncode == 0


def test_transform_with_select_fills_only_the_selected_tables(served_loader: Loader, events: Path) -> None:
    """--select fills the selected tables only. A name without a match is wrong use."""
    served_loader("load", str(events))
    some = served_loader("transform", "--select", "email_opened", "--select", "email_bounced")
    assert [line.split()[0] for line in some.stdout.splitlines()[2:]] == [
        "iterable.email_bounced",
        "iterable.email_opened",
    ]
    nothing = served_loader("transform", "--select", "no_such_table")
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("Error: No table matches no_such_table.")


def test_sql_prints_a_table_csv_or_json(run_loader: Loader) -> None:
    """One query has three forms. Numbers stay as the database has them."""
    query = "select 4310021 as campaign_id, null as nothing, 'a:b' as label"
    assert run_loader("sql", query).stdout.splitlines() == [
        "campaign_id  nothing  label",
        "-----------  -------  -----",
        "    4310021           a:b",
    ]
    assert run_loader("sql", "--format", "csv", query).stdout == "campaign_id,nothing,label\n4310021,,a:b\n"
    assert json.loads(run_loader("sql", "--format", "json", query).stdout) == [
        {"campaign_id": 4310021, "nothing": None, "label": "a:b"}
    ]
    assert run_loader("sql", "-", stdin=b"select 1 as one").stdout.splitlines()[0] == "one"
    assert run_loader("sql", "select 1 as one where false").stdout.splitlines() == ["one", "---"]


def test_url_connects(run_loader: Loader, settings: Settings) -> None:
    """Any client accepts the URL, and the variables name the same database."""
    url = run_loader("url").stdout.strip()
    with psycopg.connect(url) as connection:
        assert connection.execute("select current_database()").fetchone() == (settings.database_url.rsplit("/", 1)[1],)
    exported = run_loader("url", "--env").stdout
    asked = subprocess.run(
        ["sh", "-c", f'{exported} exec "$0" -c "$1"', sys.executable, "import os; print(os.environ['PGDATABASE'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == settings.database_url.rsplit("/", 1)[1]


def test_commands_say_when_the_raw_schema_is_missing(empty_url: str, home: Path) -> None:
    """On a user's own database, only `loader migrate` creates the schema, and it prints the revision."""
    loader = loader_here(open_settings(empty_url, home))
    for arguments in (("status",), ("transform",), ("load", __file__), ("source", "list")):
        refused = loader(*arguments)
        assert refused.returncode == 1
        assert "Run `loader migrate`" in refused.stderr
    assert loader("migrate").stdout.startswith("The raw schema is at revision ")
    assert loader("migrate").returncode == 0
    assert "loader source add Iterable" in loader("transform").stderr
    assert "loader source add Iterable" in loader("status").stdout


def test_commands_say_when_the_schema_is_newer(run_loader: Loader, settings: Settings) -> None:
    """A raw schema of a later version is left unchanged."""
    with psycopg.connect(settings.database_url) as connection:
        connection.execute("update raw.alembic_version set version_num = '9999'")
    for command in ("status", "migrate"):
        refused = run_loader(command)
        assert refused.returncode == 1
        assert "Upgrade this installation" in refused.stderr


def test_unreachable_databases_are_named_without_their_password(home: Path) -> None:
    """The error has the address, the reason and the next step, and never the password."""
    loader = loader_here(open_settings("postgresql://loader:secret@127.0.0.1:1/warehouse", home))
    refused = loader("status")
    assert refused.returncode == 1
    assert "127.0.0.1:1/warehouse" in refused.stderr
    assert "Check DATABASE_URL" in refused.stderr
    assert "secret" not in refused.stderr + refused.stdout


def test_a_database_url_that_is_not_postgresql_is_refused(home: Path) -> None:
    """The database must be PostgreSQL."""
    refused = loader_here(open_settings("mysql://root@localhost/db", home))("status")
    assert refused.returncode == 2
    assert "mysql://" in refused.stderr
