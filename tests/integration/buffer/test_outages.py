"""The collector when its database fails: its answers, and the landed events after the database is back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import Database
from loader.raw.landing import blames_row
from loader.raw.sources import add_key
from loader.settings import Settings
from tests.support.collector_thread import Collecting, Reply, collecting
from tests.support.dbt_runs import run
from tests.support.load import Load, assert_landed, load, track, wait_until_replayed
from tests.support.served_tables import contents, law
from tests.support.tcp_proxy import Proxy, proxied
from tests.support.waiting import wait_until, waiting

# Enough events for a failure in the middle.
SOME = 20


@pytest.fixture
def beyond(settings: Settings, proxy: Proxy, tmp_path: Path) -> Settings:
    """Return the settings of a collector that reaches its database through the proxy and has its own spool."""
    return settings.model_copy(
        update={"database_url": proxy.url, "spool": tmp_path / "spool", "commit_seconds": 1.0, "processes": 1}
    )


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """Return a connection past the proxy."""
    with database.connect(autocommit=True) as opened:
        yield opened


@contextmanager
def under_load(settings: Settings, key: str) -> Iterator[tuple[Collecting, Load]]:
    """Run a collector, and send events until it has accepted some and the block has ended."""
    with collecting(settings) as collector, load(collector.port, key) as sent:
        sent.wait_for(SOME)
        yield collector, sent


def send(collector: Collecting, key: str, message_id: str = "one") -> Reply:
    """Send one event."""
    return collector.post("/v1/track", track(message_id), key=key)


def destination(collector: Collecting) -> str:
    """Return the present destination of events."""
    return str(collector.get("/ready").json.get("writing_to"))


def spooled(settings: Settings) -> int:
    """Return the number of bytes in the spool."""
    assert settings.spool
    return sum(path.stat().st_size for path in settings.spool.glob("*.segment"))


def ids(connection: psycopg.Connection) -> list[str]:
    """Return the ids of all events in raw.events, in their order."""
    return [each for (each,) in connection.execute("select message_id from raw.events order by seq")]


def reasons(connection: psycopg.Connection) -> list[str]:
    """Return the reasons of the messages in quarantine."""
    return [each for (each,) in connection.execute("select reason from raw.quarantine")]


# The spool takes over


def test_answers_go_on_while_the_database_is_gone(served_settings: Settings, served: Database, tmp_path: Path) -> None:
    """This happens twice under load.

    Every event with a 200 is kept and lands in order, and each is in its table once.
    """
    with proxied(served_settings.database_url) as proxy, served.connect(autocommit=True) as connection:
        with served.begin() as transaction:
            key = add_key(transaction, "Iterable")
        settings = served_settings.model_copy(update={"database_url": proxy.url, "spool": tmp_path / "spool"})
        with under_load(settings, key) as (collector, sent):
            for _ in range(2):
                proxy.stop()
                sent.wait_for(SOME)
                assert destination(collector) == "spool"
                proxy.start()
                wait_until(lambda: destination(collector) == "database", "the spool to be replayed under load")
                sent.wait_for(SOME)
            sent.stop()
            wait_until_replayed(connection, sent)
        assert sent.statuses.keys() == {200}
        assert_landed(connection, sent)
        assert list((tmp_path / "spool").glob("*.segment")) == []
        run(served, served_settings, "email_opened", "tracks")
        assert {row[0] for row in connection.execute("select id from iterable.tracks")} == sent.ids
        assert {row[0] for row in contents(connection, "iterable.email_opened")} == sent.ids
        numbers = law(connection)
        assert numbers["accepted"] - numbers["duplicates"] == len(sent.ids)
        assert numbers["quarantined"] == 0


def test_a_database_that_never_answers_counts_as_gone(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """A connection that is open and silent makes no sender wait longer than LOADER_COMMIT_SECONDS."""
    with under_load(beyond, key) as (collector, sent):
        proxy.deafen()
        sent.wait_for(SOME)
        assert destination(collector) == "spool"
        proxy.hear()
        wait_until(lambda: destination(collector) == "database", "the database to be found again")
        sent.stop()
        wait_until_replayed(connection, sent)
    assert sent.statuses.keys() == {200}
    assert_landed(connection, sent)


def test_a_slow_database_is_not_gone(proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection) -> None:
    """While the database answers within LOADER_COMMIT_SECONDS, events go to the database."""
    with under_load(beyond, key) as (collector, sent):
        proxy.delay = 0.02
        sent.wait_for(SOME)
        assert destination(collector) == "database"
        proxy.delay = 0
        sent.stop()
    assert sent.statuses.keys() == {200}
    assert_landed(connection, sent)


def test_a_copy_that_breaks_off_is_sent_again(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """The connection may end anywhere in the batch. Events that did not land are in the spool and land from there."""
    with under_load(beyond, key) as (collector, sent):
        for size in (1, 100, 1000, 3000):
            proxy.cut_after(size)
            wait_until(proxy.happened.is_set, "the connection to be cut")
            wait_until(lambda: destination(collector) == "database", "the database to be found again")
        sent.stop()
        wait_until_replayed(connection, sent)
    assert sent.statuses.keys() == {200}
    assert_landed(connection, sent)


def test_a_commit_whose_answer_is_lost_lands_at_least_once(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """The collector cannot know that the batch has landed, so it lands again. In the tables the id counts once."""
    with collecting(beyond) as collector:
        usual = [str(number) for number in range(SOME)]
        for each in usual:
            assert send(collector, key, each).status == 200
        # The name of the column that `raw.land` returns.
        proxy.swallow(b"land\0")
        assert send(collector, key, "twice").status == 200
        assert proxy.happened.is_set()
        wait_until(lambda: destination(collector) == "database", "the spool to be replayed")
    assert ids(connection) == [*usual, "twice", "twice"]


def test_a_replay_whose_answer_is_lost_is_not_repeated(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """The position in the database shows that the part has landed, and the collector continues after that part."""
    with collecting(beyond) as collector:
        assert send(collector, key, "first").status == 200
        proxy.stop()
        assert send(collector, key, "second").status == 200
        proxy.swallow(b"COMMIT")
        proxy.start()
        wait_until(proxy.happened.is_set, "the answer to get lost")
        assert send(collector, key, "third").status == 200
        wait_until(lambda: destination(collector) == "database", "the spool to be replayed")
        assert send(collector, key, "fourth").status == 200
    assert ids(connection) == ["first", "second", "third", "fourth"]


def test_no_event_stays_in_the_spool_after_a_short_outage(
    beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """One thread turns to the spool while another finds the spool empty.

    No event stays in the spool without a replay.
    """
    with under_load(beyond, key) as (collector, sent):
        for _ in range(15):
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name = 'loader' and pid <> pg_backend_pid()"
            )
            sent.wait_for(2)
        wait_until(lambda: destination(collector) == "database", "the spool to be replayed")
        sent.stop()
        wait_until_replayed(connection, sent)
        assert spooled(beyond) == 0
    assert sent.statuses.keys() == {200}
    assert_landed(connection, sent)


def test_events_keep_the_time_they_came_at(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """`received_at` is the time of receipt by the collector, however much later the events land."""
    with collecting(beyond) as collector:
        proxy.stop()
        assert send(collector, key).status == 200
        row = connection.execute("select now()").fetchone()
        assert row
        proxy.start()
        wait_until(lambda: ids(connection) == ["one"], "the event to land")
    assert connection.execute(
        "select received_at < %s, landed_at > %s from raw.events", (row[0], row[0])
    ).fetchall() == [(True, True)]


# Starting and stopping without a database


def test_a_collector_starts_without_its_database(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows the saved write keys. The events in the spool land first when the database is back."""
    # No sender waits here.
    monkeypatch.setattr("loader.collector.server._START_SECONDS", 0.1)
    with collecting(beyond) as collector:
        assert send(collector, key, "before").status == 200
        proxy.stop()
        assert send(collector, key, "spooled").status == 200
    assert spooled(beyond)
    with collecting(beyond) as collector:
        assert send(collector, key, "started").status == 200
        assert send(collector, "nobody's", "stranger").status == 503
        proxy.start()
        wait_until(lambda: destination(collector) == "database", "the spool to be replayed")
        assert send(collector, key, "after").status == 200
        wait_until(lambda: send(collector, "nobody's", "stranger").status == 401, "the write keys to be read")
    assert ids(connection) == ["before", "spooled", "started", "after"]
    assert spooled(beyond) == 0


def test_the_next_collector_replays_the_spool_of_a_stopped_collector(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """This also holds if the next collector finds the database at once, and if it has no spool of its own."""
    with collecting(beyond) as collector:
        proxy.stop()
        assert send(collector, key, "spooled").status == 200
    proxy.start()
    with collecting(beyond.model_copy(update={"spool_bytes": 0})) as collector:
        wait_until(lambda: destination(collector) == "database", "the spool to be replayed")
        assert send(collector, key, "after").status == 200
    assert ids(connection) == ["spooled", "after"]


def test_a_collector_stops_while_it_replays_into_a_database_that_never_answers(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """The collector stops without waiting for the answer. The next collector asks the database for the position."""
    with collecting(beyond) as collector:
        proxy.stop()
        assert send(collector, key, "spooled").status == 200
        with psycopg.connect(connection.info.dsn, password=connection.info.password) as locking:
            locking.execute("lock table raw.events in access exclusive mode")
            proxy.start()
            wait_until(lambda: waiting(connection), "the replay to wait for the lock")
            assert send(collector, key, "meanwhile").status == 200
    with collecting(beyond) as collector:
        wait_until(lambda: destination(collector) == "database", "the spool to be replayed")
    assert ids(connection) == ["spooled", "meanwhile"]


# No spool, or a spool that accepts no events


def no_room(settings: Settings) -> Settings:
    """Return settings with a spool limit of 0."""
    return settings.model_copy(update={"spool_bytes": 0})


def little_room(settings: Settings) -> Settings:
    """Return settings with a spool that is full at once."""
    return settings.model_copy(update={"spool_bytes": 10})


def read_only(settings: Settings) -> Settings:
    """Return settings with a folder that is not writable."""
    return settings.model_copy(update={"spool": Path("/proc/spool")})


@pytest.mark.parametrize("without", [no_room, little_room, read_only])
def test_without_a_spool_the_answer_is_503_until_the_database_returns(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection, without: object
) -> None:
    """The answer is 503 with Retry-After and without details of the machine. A 200 always means a durable event."""
    assert callable(without)
    settings = without(beyond)
    with under_load(settings, key) as (collector, sent):
        proxy.stop()
        sent.wait_for(SOME, 503)
        refused = send(collector, key)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json["code"] == "unavailable"
        assert "/" not in refused.json["message"]
        assert collector.get("/ready").status == 503
        assert collector.get("/health").status == 200
        proxy.start()
        sent.wait_for(SOME)
        assert destination(collector) == "database"
        sent.stop()
    assert sent.statuses.keys() == {200, 503}
    assert_landed(connection, sent)


def test_a_spool_that_fills_refuses_and_recovers(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """Events with a 200 from before the spool was full land, and so do later events."""
    with under_load(beyond.model_copy(update={"spool_bytes": 20_000}), key) as (_, sent):
        proxy.stop()
        sent.wait_for(SOME)
        sent.wait_for(SOME, 503)
        proxy.start()
        sent.wait_for(SOME * 5)
        sent.stop()
        wait_until_replayed(connection, sent)
    assert_landed(connection, sent)


def test_a_full_queue_refuses_and_recovers(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """Memory is limited. While the database blocks a batch, requests beyond LOADER_QUEUE_BYTES get 503."""
    with under_load(beyond.model_copy(update={"queue_bytes": 400, "commit_seconds": 30.0}), key) as (_, sent):
        proxy.deafen()
        sent.wait_for(SOME, 503)
        proxy.hear()
        sent.wait_for(SOME)
        sent.stop()
    assert_landed(connection, sent)


# A database that answers with errors


@pytest.mark.parametrize(
    "trouble",
    [
        "alter database {database} set default_transaction_read_only = on",
        "raise exception using errcode = '53100', message = 'could not extend file: No space left on device'",
        "raise exception using errcode = 'P0001'",
        *(
            pytest.param(f"raise exception using errcode = '{code}'", marks=pytest.mark.heavy)
            for code in ("40001", "57014", "42501")
        ),
    ],
    ids=["read-only", "disk-full", "somebody's-trigger", "serialization", "cancelled", "no-permission"],
)
def test_errors_of_the_database_itself_quarantine_no_event(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection, trouble: str
) -> None:
    """The spool accepts the events with 200, and no event goes to quarantine.

    All events land when the database recovers.
    """
    trigger = trouble.startswith("raise")
    with under_load(beyond, key) as (collector, sent):
        if trigger:
            connection.execute(
                f"create function trouble() returns trigger language plpgsql as $$ begin {trouble}; end $$"
            )
            connection.execute(
                "create trigger trouble before insert on raw.events for each row execute function trouble()"
            )
        else:
            connection.execute(trouble.format(database=connection.info.dbname))
            proxy.drop()
        wait_until(lambda: destination(collector) == "spool", "the trouble to be noticed")
        sent.wait_for(SOME)
        if trigger:
            with connection.transaction():
                # The statement would lock the partitions first, an order that can deadlock with a collector.
                connection.execute("lock table raw.events in access exclusive mode")
                connection.execute("drop trigger trouble on raw.events")
        else:
            connection.execute(f"alter database {connection.info.dbname} reset default_transaction_read_only")
        wait_until(lambda: destination(collector) == "database", "the trouble to be over")
        sent.stop()
        wait_until_replayed(connection, sent)
    assert sent.statuses.keys() == {200}
    assert reasons(connection) == []
    assert_landed(connection, sent)


def test_a_lock_held_too_long_sends_events_to_the_spool(
    beyond: Settings, key: str, connection: psycopg.Connection
) -> None:
    """A lock on raw.events makes no sender wait longer than LOADER_COMMIT_SECONDS."""
    with under_load(beyond, key) as (collector, sent):
        with connection.transaction():
            connection.execute("lock table raw.events in access exclusive mode")
            sent.wait_for(SOME)
            assert destination(collector) == "spool"
        wait_until(lambda: destination(collector) == "database", "the lock to be gone")
        sent.stop()
        wait_until_replayed(connection, sent)
    assert sent.statuses.keys() == {200}
    assert_landed(connection, sent)


# A row that the database refuses


def refused(message_id: str) -> str:
    """Return a call that only PostgreSQL refuses."""
    return json.dumps(track(message_id, n=0)).replace('"n": 0', '"n": 1e200000')


def send_batch(collector: Collecting, key: str, calls: list[str]) -> Reply:
    """Send calls in one request."""
    return collector.post("/v1/batch", f'{{"batch": [{", ".join(calls)}]}}'.encode(), key=key)


@pytest.mark.parametrize("where", ["database", "spool"])
def test_only_the_bad_row_of_a_commit_goes_to_quarantine(
    proxy: Proxy, beyond: Settings, key: str, connection: psycopg.Connection, where: str
) -> None:
    """Of hundreds of rows in a commit, exactly that row goes to quarantine, directly or during a replay."""
    good = [json.dumps(track(f"good-{number}")) for number in range(400)]
    batch = [*good[:200], refused("bad"), *good[200:]]
    with collecting(beyond) as collector:
        if where == "spool":
            proxy.stop()
        assert send_batch(collector, key, batch).status == 200
        proxy.stop()
        proxy.start()
        wait_until(lambda: destination(collector) == "database", "the spool to be replayed")
    assert ids(connection) == [f"good-{number}" for number in range(400)]
    assert reasons(connection) == ["refused_by_database"]


def test_a_batch_of_bad_rows_is_not_an_outage(beyond: Settings, key: str, connection: psycopg.Connection) -> None:
    """A batch of refused rows goes to quarantine completely, and the next event lands."""
    with collecting(beyond) as collector:
        assert send_batch(collector, key, [refused(str(number)) for number in range(2000)]).status == 200
        wait_until(lambda: destination(collector) == "database", "the batch to be dealt with")
        assert send(collector, key, "good").status == 200
    assert ids(connection) == ["good"]
    assert set(reasons(connection)) == {"refused_by_database"}
    assert len(reasons(connection)) == 2000


@pytest.mark.parametrize(
    ("state", "blamed"),
    [
        ("22P02", True),  # invalid text representation
        ("22P05", True),  # a character that the encoding does not have
        ("22003", True),  # number out of range
        ("23514", True),  # a check, or no partition for the row
        ("54000", True),  # too large for the server
        ("54001", True),  # nested deeper than its stack
        ("54023", False),  # too many arguments in our statement
        ("08006", False),  # connection failure
        ("25006", False),  # read-only transaction
        ("25P02", False),  # transaction already failed
        ("40001", False),  # serialization failure
        ("40P01", False),  # deadlock
        ("42501", False),  # insufficient privilege
        ("42P01", False),  # no such table
        ("53100", False),  # disk full
        ("53200", False),  # out of memory
        ("53300", False),  # too many connections
        ("55P03", False),  # lock not available
        ("57014", False),  # cancelled
        ("57P01", False),  # shutdown
        ("57P03", False),  # starting up
        ("58030", False),  # I/O error
        ("P0001", False),  # an error of a trigger
        ("XX000", False),  # internal error
        ("XX001", False),  # data corrupted
        (None, False),  # no answer
    ],
)
def test_only_some_database_errors_blame_the_row(state: str | None, blamed: bool) -> None:
    """After any other error the same row may land later, so it does not go to quarantine."""
    error = psycopg.errors.lookup(state)() if state and state != "25P02" else psycopg.OperationalError()
    assert (error.sqlstate == state) or state in {None, "25P02"}
    assert blames_row(error) is blamed
