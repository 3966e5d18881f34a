"""A spool belongs to a warehouse: its events land in no other warehouse, unless a person asks for that."""

import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from loader.postgres.database import open_database
from loader.postgres.warehouse import Warehouse, renew_id
from loader.raw.sources import add_key, key_digest
from loader.settings import Settings
from tests.conftest import loader_here, own_database, restored
from tests.support.collector_thread import Collecting, collecting
from tests.support.folders import DATA
from tests.support.load import track
from tests.support.tcp_proxy import Proxy, proxied
from tests.support.waiting import wait_until


@contextmanager
def warehouse(server: str, home: Path, template: str, spool: Path) -> Iterator[tuple[Settings, str]]:
    """Make a warehouse with its own id; yield its settings with a given spool, and a write key."""
    with own_database(server, home, template) as settings:
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            renew_id(connection)
        with open_database(settings) as database, database.begin() as transaction:
            key = add_key(transaction, "Iterable")
        yield settings.model_copy(update={"spool": spool, "commit_seconds": 1.0, "processes": 1}), key


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Return the spool folder of the collectors of both warehouses."""
    return tmp_path / "spool"


@pytest.fixture
def ours(server: str, home: Path, raw_template: str, spool: Path) -> Iterator[tuple[Settings, str]]:
    """Return the warehouse whose events wait in the spool."""
    with warehouse(server, home, raw_template, spool) as opened:
        yield opened


@pytest.fixture
def theirs(server: str, home: Path, raw_template: str, spool: Path) -> Iterator[tuple[Settings, str]]:
    """Return another warehouse."""
    with warehouse(server, home, raw_template, spool) as opened:
        yield opened


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits for a database that is away."""
    monkeypatch.setattr("loader.collector.server._START_SECONDS", 0.1)
    monkeypatch.setattr("loader.collector.app.ASK_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr("loader.collector.warehouse_metrics._AGAIN_SECONDS", 0.0)


def beyond(settings: Settings, proxy: Proxy) -> Settings:
    """Return settings of a collector that reaches its database through a proxy."""
    return settings.model_copy(update={"database_url": proxy.url})


def send(collector: Collecting, key: str, message_id: str) -> int:
    """Send one event, and return the status of the answer."""
    return collector.post("/v1/track", track(message_id), key=key).status


def reaches_database(collector: Collecting) -> bool:
    """Return whether events go to the database at the moment."""
    return collector.get("/ready").json.get("writing_to") == "database"


def ids(settings: Settings) -> list[str]:
    """Return the ids of all events of a warehouse, in their order."""
    with psycopg.connect(settings.database_url) as connection:
        return [each for (each,) in connection.execute("select message_id from raw.events order by seq")]


def id_of(settings: Settings) -> str:
    """Return the id of a warehouse."""
    with psycopg.connect(settings.database_url, autocommit=True) as connection:
        return Warehouse().identify(connection)


def spool_events(settings: Settings, key: str, *message_ids: str) -> None:
    """Make a collector put events into the spool while its database is away."""
    with proxied(settings.database_url) as proxy, collecting(beyond(settings, proxy)) as collector:
        wait_until(lambda: reaches_database(collector), "the collector to reach its database")
        proxy.stop()
        for each in message_ids:
            assert send(collector, key, each) == 200


Named = tuple[Settings, str]


def test_a8_a_spool_does_not_replay_into_another_database(
    ours: Named, theirs: Named, spool: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """DATABASE_URL changes between restarts. The events wait, are reported, and land in their own warehouse."""
    spool_events(*ours, "a", "b")
    [segment] = spool.glob("*.segment")
    assert id_of(ours[0]) in segment.name
    with collecting(theirs[0]) as collector:
        assert send(collector, theirs[1], "theirs") == 200
        assert reaches_database(collector)
        waiting = segment.stat().st_size
        assert f"loader_foreign_spool_bytes {float(waiting)}" in collector.get("/metrics").body.decode()
        assert "loader_spool_bytes 0.0" in collector.get("/metrics").body.decode()
    assert ids(theirs[0]) == ["theirs"]
    printed = capsys.readouterr()
    # Other tests of this process may have changed the log's destination.
    assert "belongs to another warehouse" in printed.out + printed.err + caplog.text
    with collecting(ours[0]) as collector:
        wait_until(lambda: ids(ours[0]) == ["a", "b"], "the events to land in their own warehouse")
        wait_until(lambda: reaches_database(collector), "the spool to be replayed")
    assert list(spool.glob("*.segment")) == []
    assert ids(theirs[0]) == ["theirs"]


def test_a8_two_deployments_on_one_folder_get_their_own_events(ours: Named, theirs: Named, spool: Path) -> None:
    """Both collectors run at once, and both lose their database."""
    with (
        proxied(ours[0].database_url) as our_proxy,
        proxied(theirs[0].database_url) as their_proxy,
        collecting(beyond(ours[0], our_proxy)) as our_collector,
        collecting(beyond(theirs[0], their_proxy)) as their_collector,
    ):
        for collector, proxy, key, name in (
            (our_collector, our_proxy, ours[1], "ours"),
            (their_collector, their_proxy, theirs[1], "theirs"),
        ):
            wait_until(lambda collector=collector: reaches_database(collector), "the database")
            proxy.stop()
            assert send(collector, key, name) == 200
        our_proxy.start()
        their_proxy.start()
        wait_until(lambda: reaches_database(our_collector) and reaches_database(their_collector), "both databases")
    assert (ids(ours[0]), ids(theirs[0])) == (["ours"], ["theirs"])
    assert list(spool.glob("*.segment")) == []


def test_a8_an_unconnected_collector_spools_for_the_warehouse_of_its_write_keys(
    ours: Named, theirs: Named, spool: Path
) -> None:
    """It starts with another DATABASE_URL, whose database is away, and knows the saved write keys."""
    spool_events(*ours, "a")
    with proxied(theirs[0].database_url) as proxy:
        proxy.stop()
        with collecting(beyond(theirs[0], proxy)) as collector:
            assert send(collector, ours[1], "b") == 200
            assert send(collector, theirs[1], "unknown") == 503
            proxy.start()
            wait_until(lambda: reaches_database(collector), "the database")
            wait_until(lambda: send(collector, theirs[1], "theirs") == 200, "the write keys to be read")
            assert send(collector, ours[1], "c") == 401
    assert ids(theirs[0]) == ["theirs"]
    with collecting(ours[0]):
        wait_until(lambda: ids(ours[0]) == ["a", "b"], "the events to land in their own warehouse")


def test_a8_former_keys_and_spool_do_not_apply_to_a_swapped_database(
    server: str, ours: Named, theirs: Named, spool: Path
) -> None:
    """The database is replaced by another with the same name. The former keys and spool do not count there."""
    names = [settings.database_url.rsplit("/", 1)[1] for settings, _ in (ours, theirs)]

    def rename(*pairs: tuple[str, str]) -> None:
        with psycopg.connect(server, autocommit=True) as connection:
            for before, after in pairs:
                connection.execute(
                    "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s", (before,)
                )
                connection.execute(f'alter database "{before}" rename to "{after}"')

    swap = ((names[0], "swapped"), (names[1], names[0]), ("swapped", names[1]))
    with proxied(ours[0].database_url) as proxy, collecting(beyond(ours[0], proxy)) as collector:
        wait_until(lambda: reaches_database(collector), "the database")
        assert send(collector, ours[1], "landed") == 200
        proxy.stop()
        assert send(collector, ours[1], "spooled") == 200
        rename(*swap)
        try:
            proxy.start()
            wait_until(lambda: reaches_database(collector), "the other database")
            wait_until(lambda: send(collector, ours[1], "refused") == 401, "the write keys to be read")
            assert send(collector, theirs[1], "theirs") == 200
            assert ids(ours[0]) == ["theirs"]
        finally:
            proxy.stop()
            rename(*swap)
        proxy.start()
        wait_until(lambda: reaches_database(collector), "the first database again")
        wait_until(lambda: send(collector, ours[1], "after") == 200, "the write keys to be read")
    assert ids(ours[0])[:2] == ["landed", "spooled"]
    assert set(ids(theirs[0])) == {"theirs"}


def test_a8_a_command_lands_a_foreign_segment_on_purpose(ours: Named, theirs: Named, spool: Path) -> None:
    """Until then the segment is listed and counted in `status`.

    A segment that a collector holds stays with the collector.
    """
    spool_events(*ours, "a", "b")
    [name] = [path.name for path in spool.glob("*.segment")]
    loader = loader_here(theirs[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADER_SPOOL", str(spool))
        assert id_of(ours[0]) in loader("spool", "list").stdout
        assert name in loader("status").stdout
        assert f'"segment": "{name}"' in loader("status", "--json").stdout
        assert loader("spool", "land").returncode == 2
        missing = loader("spool", "land", "nothing.segment")
        assert (missing.returncode, "no segment nothing.segment" in missing.stderr) == (1, True)
        renamed = spool / "00000000000000000000-backup.segment"
        renamed.touch()
        landed = loader("spool", "land", "--all")
        assert (landed.returncode, landed.stdout.splitlines()[0][:15]) == (1, "2 events landed")
        assert "was renamed" in landed.stderr
        assert "1 segment of 2 could not be landed." in landed.stderr
        renamed.unlink()
        assert loader("spool", "land", "--all").returncode == 0
        assert loader("spool", "list").stdout == "Nothing is in the spool.\n"
        assert "Spool files" not in loader("status").stdout
        spool_events(*ours, "c")
        with proxied(ours[0].database_url) as proxy:
            proxy.stop()
            with collecting(beyond(ours[0], proxy)):
                held = loader("spool", "land", "--all")
                assert (held.returncode, "held by a collector" in held.stderr) == (1, True)
    assert ids(theirs[0]) == ["a", "b"]


def test_a8_a_foreign_segment_of_a_source_that_is_not_there_stays(ours: Named, theirs: Named, spool: Path) -> None:
    """Its events would be in no table, so the command names the source to add."""
    spool_events(*ours, "a")
    with psycopg.connect(theirs[0].database_url, autocommit=True) as connection:
        connection.execute("update raw.sources set schema_name = 'other'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADER_SPOOL", str(spool))
        refused = loader_here(theirs[0])("spool", "land", "--all")
    assert refused.returncode == 1
    assert "loader source add NAME --schema iterable" in refused.stderr
    assert ids(theirs[0]) == []
    assert len(list(spool.glob("*.segment"))) == 1


def test_a8_a_restored_dump_is_the_same_warehouse(ours: Named, server: str, home: Path, spool: Path) -> None:
    """The dump contains the id, and the waiting events land."""
    spool_events(*ours, "a")
    with restored(ours[0].database_url, server, home) as copy:
        settings = copy.model_copy(update={"spool": spool, "commit_seconds": 1.0, "processes": 1})
        assert id_of(settings) == id_of(ours[0])
        with collecting(settings):
            wait_until(lambda: ids(settings) == ["a"], "the events to land")


def test_a8_a_physical_clone_gets_a_new_id(ours: Named) -> None:
    """`loader warehouse-id` prints the id, and makes a new id with `--renew`."""
    loader = loader_here(ours[0])
    before = loader("warehouse-id").stdout
    renewed = loader("warehouse-id", "--renew").stdout
    assert before != renewed == loader("warehouse-id").stdout
    assert renewed.strip() == id_of(ours[0])


def test_a8_segments_and_keys_of_an_older_version_still_work(ours: Named, spool: Path) -> None:
    """The previous version wrote segments and saved keys without an id. They count as before."""
    shutil.copytree(DATA / "spool", spool)
    settings, _ = ours
    with psycopg.connect(settings.database_url, autocommit=True) as connection:
        connection.execute(
            "insert into raw.write_keys (source_id, key_sha256) select id, %s from raw.sources",
            (key_digest("old-write-key"),),
        )
    with proxied(settings.database_url) as proxy:
        proxy.stop()
        with collecting(beyond(settings, proxy)) as collector:
            assert send(collector, "old-write-key", "new") == 200
            proxy.start()
            wait_until(lambda: reaches_database(collector), "the spool to be replayed")
            copy = spool / "write_keys.json"
            wait_until(lambda: id_of(settings) in copy.read_text(), "the copy of the keys to get the id")
    assert ids(settings) == [*(f"old-{number}" for number in range(1, 6)), "new"]
    with psycopg.connect(settings.database_url) as connection:
        times = connection.execute("select received_at::text from raw.events order by seq limit 5").fetchall()
        assert [time[11:19] for (time,) in times] == [f"15:00:0{number}" for number in range(1, 6)]
        assert connection.execute("select reason from raw.quarantine").fetchall() == [("truncated_line",)]
    assert [path.name for path in spool.iterdir()] == ["write_keys.json"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_c7_a_readiness_request_writes_nothing_to_disk(
    ours: Named, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key is sent, and the database is away. The spool does not grow, and no file is synced."""
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    with proxied(ours[0].database_url) as proxy:
        proxy.stop()
        with collecting(beyond(ours[0], proxy)) as collector:
            for _ in range(20):
                reply = collector.get("/ready")
                assert (reply.status, reply.json["writing_to"]) == (200, "spool")
    assert synced == []
    assert list(spool.glob("*.segment")) == []
