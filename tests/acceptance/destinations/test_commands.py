"""`loader destination` and `loader forward`, as a person runs them."""

import json
import stat
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from tests.conftest import Loader, loader_here
from tests.support.deliveries import fill_tracks, land_calls, land_many, new_destination
from tests.support.delivery_fixtures import KEY
from tests.support.receivers import Receiver, Respond, refusing


@pytest.fixture
def cdp(run_loader: Loader, receiver: Receiver) -> str:
    """Add a destination that begins with the first event, and return its name."""
    options = ["--url", receiver.url, "--key", "env:DESTINATION_KEY", "--from", "start"]
    assert run_loader("destination", "add", "cdp", "--kind", "segment", *options).returncode == 0
    return "cdp"


def test_a_destination_gets_the_events_and_shows_its_progress(
    run_loader: Loader, connection: psycopg.Connection, receiver: Receiver, cdp: str
) -> None:
    """From `destination add` to the numbers in every status."""
    land_many(connection, ["a", "b", "c"])
    fill_tracks(connection)
    waiting = json.loads(run_loader("forward", "status", "--json").stdout)
    assert [each["waiting"] for each in waiting["deliveries"]] == [3]
    done = run_loader("forward", "--once")
    assert (done.returncode, receiver.taken_ids) == (0, ["a", "b", "c"])
    [row] = json.loads(run_loader("forward", "status", "--json").stdout)["deliveries"]
    assert (row["delivered"], row["waiting"], row["oldest_seconds"]) == (3, 0, None)
    assert "cdp" in run_loader("forward", "status").stdout
    [listed] = json.loads(run_loader("destination", "list", "--json").stdout)
    assert (listed["name"], listed["state"]) == ("cdp", "active")
    status = json.loads(run_loader("status", "--json").stdout)
    assert status["destinations"][0]["name"] == "cdp"
    assert status["deliveries"][0]["delivered"] == 3
    assert status["lost_deliveries"] == []
    assert "Destinations" in run_loader("status").stdout


def test_a_lost_event_shows_in_the_status(
    run_loader: Loader, connection: psycopg.Connection, receiver: Receiver, cdp: str
) -> None:
    """The numbers of a destination must add up, and `loader status` fails otherwise."""
    land_many(connection, ["a", "b"])
    fill_tracks(connection)
    run_loader("forward", "--once")
    connection.execute("update raw.delivery_cursors set delivered = 1")
    done = run_loader("status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["lost_deliveries"][0]["events"] == 2


def test_a_destination_can_be_paused_resumed_and_removed(
    run_loader: Loader, connection: psycopg.Connection, receiver: Receiver, cdp: str
) -> None:
    """A paused destination gets nothing, and a removed one leaves nothing."""
    land_many(connection, ["a"])
    fill_tracks(connection)
    run_loader("destination", "pause", "cdp")
    done = run_loader("forward", "--once")
    assert (done.returncode, receiver.requests) == (1, [])
    assert "cdp" in done.stderr
    run_loader("destination", "resume", "cdp")
    run_loader("forward", "run", "--once", "cdp")
    assert receiver.taken_ids == ["a"]
    assert run_loader("destination", "remove", "cdp", "--yes").returncode == 0
    for table in ("destinations", "delivery_cursors", "dead_letters"):
        assert connection.execute(f"select count(*) from raw.{table}").fetchone() == (0,)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9", "The destination is failing: no answer from 127.0.0.1"),
        ("env:NO_URL", "The destination is paused (config): The variable NO_URL is not set"),
    ],
)
def test_one_round_ends_while_a_receiver_is_down(  # noqa: PLR0917 - fixtures
    run_loader: Loader,
    connection: psycopg.Connection,
    receiver: Receiver,
    cdp: str,
    url: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others get their events. The message names the destination and the reason, and the events wait."""
    monkeypatch.setattr("loader.destinations.worker.ONCE_SECONDS", 1.0)
    new_destination(connection, "webhook", name="down", url=url)
    land_many(connection, ["a"])
    fill_tracks(connection)
    done = run_loader("forward", "--once")
    assert done.returncode == 1
    assert f"Destination down has not got all events. {reason}" in done.stderr
    assert receiver.taken_ids == ["a"]
    assert run_loader("forward", "--once", cdp).returncode == 0
    progress = json.loads(run_loader("forward", "status", "--json").stdout)["deliveries"]
    assert {each["destination"]: each["waiting"] for each in progress} == {"cdp": 0, "down": 1}


def test_one_round_ends_while_the_database_is_down(run_loader: Loader, cdp: str, settings: Settings) -> None:
    """As other commands do, with the reason."""
    address = settings.database_url.replace(f":{urlsplit(settings.database_url).port}/", ":9/")
    done = loader_here(settings.model_copy(update={"database_url": address}))("forward", "--once")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["destination", "add", "cdp", "--kind", "segment", "--url", "https://host", "--key", KEY],
        ["destination", "add", "cdp", "--kind", "segment", "--url", "http://10.0.0.1", "--key", "env:K"],
        ["destination", "add", "cdp", "--kind", "webhook", "--url", f"https://user:{KEY}@host"],
        ["destination", "add", "cdp", "--kind", "webhook", "--url", "https://host", "--rate", "fast"],
        ["destination", "add", " ", "--kind", "webhook", "--url", "https://host"],
        ["destination", "show", "nobody"],
        ["destination", "filter", "nobody", "--events", "a"],
        ["forward", "run", "nobody"],
        ["forward", "replay", "nobody", "--since", "2026-03-01"],
        ["forward", "dead", "list", "nobody"],
    ],
)
def test_wrong_use_is_one_line_without_the_secret(run_loader: Loader, arguments: list[str]) -> None:
    """The exit code is 2, and the message says what to do."""
    done = run_loader(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(("Error: ", "Usage: "))
    assert KEY not in done.stdout + done.stderr


def test_a_second_destination_of_one_name_is_refused(run_loader: Loader, cdp: str) -> None:
    """The message names the command that lists the names."""
    done = run_loader("destination", "add", "cdp", "--kind", "webhook", "--url", "https://host")
    assert (done.returncode, "loader destination list" in done.stderr) == (2, True)


def test_a_key_file_that_all_users_may_read_gets_a_warning(
    run_loader: Loader, database: Database, tmp_path: Path
) -> None:
    """A file of Docker's or Kubernetes' secrets has such rights, so the destination is added."""
    place = tmp_path / "key"
    place.write_text("secret")
    place.chmod(stat.S_IRUSR | stat.S_IROTH)
    done = run_loader(
        "destination", "add", "cdp", "--kind", "segment", "--url", "https://host", "--key", f"file:{place}"
    )
    assert done.returncode == 0
    assert f"Warning: every user of this machine may read {place}" in done.stderr


def test_show_hides_the_query_of_an_address(run_loader: Loader, database: Database) -> None:
    """An address may have a token there."""
    run_loader("destination", "add", "ops", "--kind", "webhook", "--url", f"https://host/hook?token={KEY}")
    shown = run_loader("destination", "show", "ops").stdout
    assert json.loads(shown)["settings"]["url"] == "https://host/hook"


def test_filters_are_changed_part_by_part(
    run_loader: Loader, connection: psycopg.Connection, receiver: Receiver, cdp: str
) -> None:
    """An option replaces the filter of its kind, and `--clear` removes all."""
    run_loader("destination", "filter", "cdp", "--events", "Email *", "--where", "properties.n > 1")
    shown = run_loader("destination", "filter", "cdp", "--exclude", "*Skip", "--hash", "properties.email").stdout
    assert json.loads(shown) == {
        "events": ["Email *"],
        "exclude": ["*Skip"],
        "hash": ["properties.email"],
        "where": [{"path": "properties.n", "op": ">", "value": 1}],
    }
    land_calls(
        connection,
        {"messageId": "a", "properties": {"n": 2}},
        {"messageId": "b", "properties": {"n": 1}},
        {"messageId": "c", "event": "Email Send Skip", "properties": {"n": 2}},
    )
    fill_tracks(connection)
    tried = run_loader("destination", "test", "cdp")
    assert [json.loads(line)["messageId"] for line in tried.stdout.splitlines()] == ["a"]
    assert "1 of the last 3 events" in tried.stderr
    assert receiver.requests == []
    run_loader("forward", "--once")
    assert receiver.taken_ids == ["a"]
    assert json.loads(run_loader("destination", "filter", "cdp", "--clear").stdout) == {}


def test_destination_test_can_send_a_marked_event_to_the_receiver(
    run_loader: Loader, receiver: Receiver, cdp: str
) -> None:
    """The answer decides the exit code."""
    assert run_loader("destination", "test", "cdp", "--send").returncode == 0
    assert [call["event"] for call in receiver.taken] == ["Loader Test"]
    receiver.answer = lambda _: Respond(401)
    refused = run_loader("destination", "test", "cdp", "--send")
    assert refused.returncode == 1
    assert "answered 401" in refused.stderr


def test_dead_letters_are_listed_shown_retried_and_dropped(
    run_loader: Loader, connection: psycopg.Connection, receiver: Receiver, cdp: str
) -> None:
    """A retried letter that is accepted leaves the list."""
    receiver.answer = refusing(lambda call: call["messageId"] != "c")
    land_many(connection, ["a", "b", "c"])
    fill_tracks(connection)
    assert run_loader("forward", "--once").returncode == 0
    letters = json.loads(run_loader("forward", "dead", "list", "cdp", "--json").stdout)
    assert [letter["message_id"] for letter in letters] == ["a", "b"]
    shown = run_loader("forward", "dead", "show", "cdp", str(letters[0]["id"]))
    assert json.loads(shown.stdout)["messageId"] == "a"
    assert "bad call" in shown.stderr
    receiver.answer = refusing(lambda call: call["messageId"] == "b")
    assert "2 dead letters" in run_loader("forward", "dead", "retry", "cdp").stdout
    run_loader("forward", "--once")
    assert receiver.taken_ids == ["c", "a"]
    dropped = run_loader("forward", "dead", "drop", "cdp", "--reason", letters[1]["reason"], "--yes")
    assert "1 dead letter deleted" in dropped.stdout
    assert json.loads(run_loader("forward", "dead", "list", "cdp", "--json").stdout) == []
    assert run_loader("forward", "dead", "show", "cdp", "1").returncode == 2


def test_a_replay_says_how_many_events_it_has_and_sends_them_again(
    run_loader: Loader, connection: psycopg.Connection, receiver: Receiver, cdp: str
) -> None:
    """A replay without limits is refused, because it would send everything."""
    assert run_loader("forward", "replay", "cdp").returncode == 2
    land_many(connection, ["a", "b"])
    fill_tracks(connection)
    assert run_loader("forward", "replay", "cdp", "--since", "2026-01-01").returncode == 2
    run_loader("forward", "--once")
    done = run_loader("forward", "replay", "cdp", "--since", "2026-01-01")
    assert done.returncode == 0
    assert "2 events in this time" in done.stderr
    run_loader("forward", "--once")
    assert receiver.taken_ids == ["a", "b", "a", "b"]
    assert "finished" in run_loader("forward", "status").stdout
    connection.execute("update iterable.tracks set timestamp = '2026-01-02' where id = 'b'")
    by_time = run_loader("forward", "replay", "cdp", "--by", "time", "--until", "2026-01-03")
    assert "1 event in this time" in by_time.stderr
    assert run_loader("forward", "replay", "cdp", "--since", "yesterday").returncode == 2


def test_a_filter_on_an_unknown_source_gets_a_warning(run_loader: Loader, cdp: str) -> None:
    """A wrong name would keep every call back in silence."""
    done = run_loader("destination", "filter", "cdp", "--sources", "app", "--sources", "iterable")
    assert json.loads(done.stdout) == {"sources": ["app", "iterable"]}
    assert "There is no source with the schema app yet." in done.stderr
    assert "schema iterable" not in done.stderr


def test_a_replay_to_iterable_says_that_profiles_get_old_values(
    run_loader: Loader, connection: psycopg.Connection, receiver: Receiver
) -> None:
    """A replay of events by their names updates no profile."""
    new_destination(connection, "iterable", name="crm", url=receiver.url, key="env:DESTINATION_KEY")
    land_many(connection, ["a"])
    fill_tracks(connection)
    assert run_loader("forward", "--once").returncode == 0
    replay = ("forward", "replay", "crm", "--since", "2026-01-01")
    assert "Profiles get the values of this time again." in run_loader(*replay).stderr
    assert "Profiles" not in run_loader(*replay, "--events", "Email *").stderr
