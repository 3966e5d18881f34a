"""The demo: its output; and its sample events, of which all land and none among other events."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import psycopg
import pytest

import loader.cli.demo
from loader.cli.demo import send_sample_events
from loader.errors import UsageError
from loader.events.naming import table_name
from loader.postgres.database import Database, open_database
from loader.postgres.embedded import EmbeddedServer
from loader.sample.events import DEFAULT_RECIPIENTS, generate_sample_events, last_sunday
from loader.settings import Settings
from tests.conftest import fast_folder, loader_here, open_settings
from tests.support.factories import insert_event
from tests.support.html_page import Element, read_page

RECIPIENTS = 20


@pytest.fixture
def few_recipients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo have few recipients."""
    monkeypatch.setattr(
        loader.cli.demo, "generate_sample_events", partial(generate_sample_events, recipients=RECIPIENTS)
    )


@pytest.fixture
def database(settings: Settings, few_recipients: None) -> Iterator[Database]:
    """Return that database, for a demo with few recipients."""
    with open_database(settings) as opened:
        yield opened


@pytest.fixture
def demo_home() -> Iterator[Path]:
    """Return a folder for `loader demo` that the server's user can enter if the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="loader-demo-", dir=fast_folder()))
    folder.chmod(0o755)
    yield folder
    EmbeddedServer(folder / "demo").stop()
    shutil.rmtree(folder)


def check_shown(lines: list[str], recipients: int) -> tuple[str, Element]:
    """Check the tables and the query that the demo has shown; return its URL and its report."""
    counts = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("iterable.", "app."))}
    sample = generate_sample_events(date(2026, 5, 3), recipients)
    sent = Counter(f"iterable.{table_name(call['event'])}" for call in sample.iterable)
    sent |= {"iterable.tracks": sent.total(), "app.order_completed": len(sample.app), "app.tracks": len(sample.app)}
    assert counts == {table: f"{number:,}" for table, number in sent.items()}
    at_url, url = next((place, line.split()[-1]) for place, line in enumerate(lines) if "postgresql://" in line)
    with psycopg.connect(url) as connection:
        found = connection.execute("select count(*) from iterable.email_delivered").fetchone()
        assert found == (sent["iterable.email_delivered"],)
    assert max(len(line) for line in lines[lines.index("limit 5;") : at_url]) <= 80
    return url, read_page(Path(lines[-1].split(": ")[1]).read_text(encoding="utf-8"))


def test_d7_a_demo_of_few_recipients_shows_the_tables_and_a_report(demo_home: Path, few_recipients: None) -> None:
    """The demo fills the tables of two sources, and names a URL and a report."""
    shown = loader_here(open_settings("", demo_home))("demo")
    assert shown.returncode == 0, shown.stderr
    _, report = check_shown(shown.stdout.splitlines(), RECIPIENTS)
    assert report.section("campaigns").table()


@pytest.mark.heavy
def test_d7_the_demo_shows_the_tables_and_a_report_twice_in_a_row(demo_home: Path) -> None:
    """The installed program does so with all recipients. Its URL works as typed, and a second run changes nothing."""
    environment = os.environ | {"LOADER_HOME": str(demo_home), "LOADER_EMBEDDED_IDLE": "60"}

    def run() -> list[str]:
        done = subprocess.run(
            [Path(sys.executable).with_name("loader"), "demo"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=240,
            check=True,
        )
        return done.stdout.splitlines()

    first, second = run(), run()
    assert first == second
    url, report = check_shown(first, DEFAULT_RECIPIENTS)
    assert len(report.section("campaigns").table()) > 10
    assert {row[6] for row in report.section("revenue").table()} == {"EUR", "USD"}

    command = next(line for line in first if line.endswith(" url"))
    typed = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert typed.stdout.strip() == url


def landed(database: Database) -> set[str]:
    """Return the ids of the landed events."""
    with database.connect() as connection:
        return {row[0] for row in connection.execute("select message_id from raw.events")}


def test_a_stopped_demo_is_continued(database: Database, settings: Settings) -> None:
    """The next run sends the rest. A run after that sends nothing."""
    sample = generate_sample_events(last_sunday(datetime.now(UTC).date()), recipients=RECIPIENTS)
    whole = {call["messageId"] for call in (*sample.iterable, *sample.app)}
    send_sample_events(database, settings)
    assert landed(database) == whole
    with database.connect(autocommit=True) as connection:
        connection.execute("delete from raw.events where seq > 100")
    send_sample_events(database, settings)
    assert landed(database) == whole
    with database.connect() as connection:
        before = connection.execute("select count(*) from raw.events").fetchone()
        send_sample_events(database, settings)
        assert connection.execute("select count(*) from raw.events").fetchone() == before


def test_the_demo_adds_no_events_to_a_demo_of_an_earlier_version(database: Database, settings: Settings) -> None:
    """The error names the folder to remove. The sample would otherwise mix with other events."""
    with database.connect(autocommit=True) as connection:
        insert_event(connection, "email_opened", "old")
    with pytest.raises(UsageError, match="Remove that folder"):
        send_sample_events(database, settings)
    assert landed(database) == {"old"}
