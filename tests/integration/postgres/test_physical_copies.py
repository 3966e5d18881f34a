"""A copy of a cluster's files continues unchanged; a dump restored into a cluster is noticed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from loader.postgres.database import Database, open_database
from loader.postgres.embedded import EmbeddedServer
from loader.settings import Settings
from tests.conftest import dumped, fast_folder, open_settings, own_database, restore, restored
from tests.integration.conftest import MakeSmall
from tests.integration.postgres.test_restore import EVENT, ids, land
from tests.support.dbt_runs import parse_once, run
from tests.support.own_server import copy_cluster
from tests.support.served_tables import assert_union, everything, law
from tests.support.small_project import used

MODELS = ("email_opened", "email_delivered", "found_collections", "tracks")
ADOPT = "select raw.adopt_cluster()"
STAMPS = "select seq, load_xid::text from raw.events order by seq"


@contextmanager
def own_cluster(folder: Path) -> Iterator[str]:
    """Run the cluster of a folder, and stop it at the end; yield the URL of its database."""
    server = EmbeddedServer(folder, idle=60)
    try:
        yield server.acquire()
    finally:
        server.release()
        server.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder for clusters that the database's user can enter if the tests run as root."""
    with TemporaryDirectory(prefix="copies-", dir=fast_folder()) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def opened(url: str, home: Path) -> Iterator[tuple[Database, Settings, psycopg.Connection]]:
    """Open a database as a command does."""
    settings = open_settings(url, home)
    with (
        open_database(settings, migrate_behind=True) as database,
        database.connect(autocommit=True) as connection,
    ):
        yield database, settings, connection


def drop_all(url: str) -> None:
    """Remove all objects of the loader in a database, to restore a dump there."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema if exists raw, iterable cascade")


def burn(url: str, count: int) -> None:
    """Use up transaction ids."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(count):
            connection.execute("select pg_current_xact_id()")


def go_on(url: str, home: Path, *, seen: set[str], waiting: set[str], is_rebuilt: bool = False) -> None:
    """Check that waiting and new events come into the tables once, and that the conservation law holds.

    Args:
        url: The database.
        home: The home of the project.
        seen: The ids of the events in the tables.
        waiting: The ids of the events that no run has read.
        is_rebuilt: Check that a rebuild makes the same rows, too.
    """
    with opened(url, home) as (database, settings, connection):
        told = law(connection)
        assert told["waiting"] == len(waiting)
        land(url, "email_opened", "late")
        run(database, settings, *MODELS)
        assert set(ids(url, "email_opened")) == {*seen, *waiting, "late"}
        assert set(ids(url, "tracks")) >= {*seen, *waiting, "late", "order"}
        told = law(connection)
        assert (told["waiting"], told["duplicates"]) == (0, 1)
        assert_union(connection)
        if is_rebuilt:
            before = everything(connection)
            run(database, settings, *MODELS, full_refresh=True)
            assert everything(connection) == before


def begin(url: str, home: Path) -> None:
    """Land some events, two with the same id, and fill the tables."""
    with opened(url, home) as (database, settings, connection):
        connection.execute(
            "insert into raw.sources (name, schema_name) values ('Iterable', 'iterable') on conflict do nothing"
        )
        connection.execute(
            "insert into raw.collections (source, collection, event, first_event_id)"
            " values ('iterable', 'order_placed', 'Order Placed', 'order')"
        )
        land(url, "email_opened", "a", "b", "a")
        land(url, "order_placed", "order")
        run(database, settings)


def advance(url: str, home: Path) -> None:
    """Fill the tables with another event, and leave a further event waiting."""
    burn(url, 50)
    with opened(url, home) as (database, settings, _):
        land(url, "email_opened", "c")
        run(database, settings, *MODELS)
    land(url, "email_opened", "d")


@pytest.fixture(scope="module")
def begun(small_template: Settings, small_package: Path, cluster_template: Path) -> Iterator[Path]:
    """Return the folder of a stopped cluster with some events in its tables."""
    with TemporaryDirectory(prefix="copies-", dir=fast_folder()) as name:
        Path(name).chmod(0o755)
        copy_cluster(cluster_template, Path(name, "first"))
        with used(small_package), own_cluster(Path(name, "first")) as url:
            begin(url, small_template.home)
        yield Path(name, "first")


@pytest.fixture(scope="module")
def advanced_dump(begun: Path, small_template: Settings, small_package: Path) -> Iterator[bytes]:
    """Return a dump of a copy that has gone on."""
    folder = begun.with_name("advanced")
    copy_cluster(begun, folder)
    with used(small_package), own_cluster(folder) as url:
        advance(url, small_template.home)
        yield dumped(url)


@pytest.mark.heavy
def test_a4_a_dump_restored_into_a_physical_copy_is_noticed(
    folder: Path, begun: Path, advanced_dump: bytes, small_home: Path
) -> None:
    """The copy has the same system_identifier and other transaction ids. An event that lands there is new."""
    copy_cluster(begun, folder / "second")
    with own_cluster(folder / "second") as url:
        drop_all(url)
        restore(advanced_dump, url)
        # No command has opened the database yet. A collector whose connection outlived the restore lands an event.
        land(url, "email_opened", "early")
        go_on(url, small_home, seen={"a", "b", "c"}, waiting={"d", "early"}, is_rebuilt=True)


def test_a4_a_newer_dump_after_a_rewind_is_noticed(
    folder: Path, begun: Path, advanced_dump: bytes, small_home: Path
) -> None:
    """A cluster that was set back to an earlier state issues the ids of the dump a second time."""
    copy_cluster(begun, folder / "first")
    with own_cluster(folder / "first") as url:
        drop_all(url)
        restore(advanced_dump, url)
        # Ids pass those of the dump before any command checks.
        burn(url, 500)
        go_on(url, small_home, seen={"a", "b", "c"}, waiting={"d"})


def test_a4_a_physical_copy_continues_unchanged(folder: Path, begun: Path, small_home: Path) -> None:
    """Its files agree with its transaction ids, so no event is marked again, in the copy or after a rewind."""
    copy_cluster(begun, folder / "first")
    with own_cluster(folder / "first") as url:
        land(url, "email_opened", "c")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("vacuum (freeze, full) raw.restore_mark")
            stamps = connection.execute(STAMPS).fetchall()
    copy_cluster(folder / "first", folder / "second")
    for name in ("second", "first"):
        with own_cluster(folder / name) as url:
            with psycopg.connect(url, autocommit=True) as connection:
                assert connection.execute(ADOPT).fetchone() == (False,)
                assert connection.execute(STAMPS).fetchall() == stamps
            go_on(url, small_home, seen={"a", "b"}, waiting={"c"})


@pytest.fixture
def begun_settings(
    server: str, small_template: Settings, small_project: Path, make_small: MakeSmall
) -> Iterator[Settings]:
    """Return settings of a database of the run's server with some events in its tables."""
    template = make_small("copies_template", lambda _, settings: begin(settings.database_url, settings.home))
    with own_database(server, small_template.home, template) as opened:
        parse_once(opened)
        yield opened


def test_a4_a_dump_restored_beside_its_original_loses_no_event(
    begun_settings: Settings, server: str, small_home: Path
) -> None:
    """In another database of the same cluster no event is lost or doubled, and the original continues."""
    url = begun_settings.database_url
    land(url, "email_opened", "c")
    with restored(url, server, small_home) as settings:
        go_on(settings.database_url, small_home, seen={"a", "b"}, waiting={"c"})
    go_on(url, small_home, seen={"a", "b"}, waiting={"c"})


def test_a4_events_that_land_right_after_a_restore_are_new(
    begun_settings: Settings, other_server: str, server: str, small_home: Path
) -> None:
    """Events that land between a restore and the first command are new, whatever the restored snapshots contain."""
    url = begun_settings.database_url
    with restored(url, other_server, small_home) as elsewhere:
        burn(elsewhere.database_url, 1000)
        advance(elsewhere.database_url, small_home)
        dump = dumped(elsewhere.database_url)
    drop_all(url)
    restore(dump, url)
    land(url, "email_opened", "early")
    with psycopg.connect(url, autocommit=True) as connection, connection.transaction():
        connection.execute("savepoint one")
        connection.execute(EVENT, ("email_opened", "saved", "saved"))
    go_on(url, small_home, seen={"a", "b", "c"}, waiting={"d", "early", "saved"}, is_rebuilt=True)


def test_a4_tables_with_different_cursors_keep_their_rows_after_a_restore(
    begun_settings: Settings, other_server: str, small_home: Path
) -> None:
    """A table ahead of tracks and a table behind tracks keep their rows. Each reads only its missing events."""
    url = begun_settings.database_url
    with opened(url, small_home) as (database, settings, _):
        land(url, "email_opened", "c")
        run(database, settings, "email_opened")
        land(url, "email_delivered", "p")
        run(database, settings, "tracks")
        land(url, "email_opened", "d")
        run(database, settings, "email_opened")
    with (
        restored(url, other_server, small_home) as copied,
        opened(copied.database_url, small_home) as (database, settings, connection),
    ):
        stamped = dict(connection.execute("select message_id, load_xid::text from raw.events").fetchall())
        assert stamped == {"a": "1", "b": "1", "order": "1", "c": "1", "p": "3", "d": "2"}
        read = {table.table: table.rows for table in run(database, settings, *MODELS) if table.rows}
        assert read == {"email_delivered": 1, "tracks": 1}
        assert connection.execute("select from raw.cursors where snapshot is null").fetchall() == []
        assert law(connection)["duplicates"] == 1


def test_a4_the_check_for_a_restore_scans_no_events(small_settings: Settings, small: Database) -> None:
    """Without work, the check scans no events, blocks no writers and writes nothing."""
    with small.connect(autocommit=True) as connection:
        connection.execute(
            "insert into raw.events (source, collection, message_id, payload)"
            " select 'iterable', 'email_opened', n::text, '{}' from generate_series(1, 20000) as n"
        )
        connection.execute("analyze raw.events")
        scans = (
            "select sum(pg_stat_get_xact_numscans(oid)), sum(pg_stat_get_xact_tuples_returned(oid))"
            " from pg_class where relname like 'events\\_%' and relkind = 'r'"
        )
        with connection.transaction():
            before = connection.execute(scans).fetchone()
            assert connection.execute(ADOPT).fetchone() == (False,)
            after = connection.execute(scans).fetchone()
            assert before is not None
            assert after is not None
            assert after[1] == before[1]
            locks = connection.execute(
                "select distinct mode from pg_locks where pid = pg_backend_pid() and locktype = 'relation'"
            )
            assert locks.fetchall() == [("AccessShareLock",)]
            assert connection.execute("select pg_current_xact_id_if_assigned()").fetchone() == (None,)


@pytest.mark.parametrize("damage", ["snapshot", "load_xid"])
def test_a4_future_transaction_ids_lead_to_an_adoption(small_settings: Settings, small: Database, damage: str) -> None:
    """Such ids come from a later time of the cluster, before the cluster was set back."""
    url = small_settings.database_url
    land(url, "email_opened", "a")
    with small.connect(autocommit=True) as connection:
        if damage == "snapshot":
            run(small, small_settings, *MODELS)
            connection.execute("update raw.cursors set snapshot = '4000000:4000000:' where model = 'email_opened'")
        else:
            connection.execute("update raw.events set load_xid = '4000000'")
        assert connection.execute(ADOPT).fetchone() == (True,)
        assert connection.execute(ADOPT).fetchone() == (False,)
        land(url, "email_opened", "b")
        run(small, small_settings, *MODELS)
        assert ids(url, "email_opened") == ids(url, "tracks") == ["a", "b"]
        assert law(connection)["waiting"] == 0


def test_a4_an_adoption_inside_a_savepoint_is_refused(small: Database) -> None:
    """The mark would name the outer transaction, and every check would take it for restored."""
    with small.connect(autocommit=True) as connection:
        connection.execute("update raw.cluster set system_identifier = system_identifier + 1")
        with (
            connection.transaction(),
            pytest.raises(psycopg.Error, match="inside a savepoint"),
            connection.transaction(),
        ):
            connection.execute(ADOPT)
        assert connection.execute(ADOPT).fetchone() == (True,)


def test_a4_columns_that_wait_for_values_are_filled_from_the_start(small_settings: Settings, small: Database) -> None:
    """The snapshot of the missing values is invalid now, so all rows are checked."""
    url = small_settings.database_url
    land(url, "email_opened", "a")
    run(small, small_settings, *MODELS)
    with small.connect(autocommit=True) as connection:
        connection.execute(
            "update raw.columns set fill_from = pg_current_snapshot()"
            " where model = 'email_opened' and column_name in ('user_id', 'campaign_id')"
        )
        connection.execute("update raw.cluster set system_identifier = system_identifier + 1")
        assert connection.execute(ADOPT).fetchone() == (True,)
        waiting = connection.execute("select distinct fill_from::text from raw.columns where fill_from is not null")
        assert waiting.fetchall() == [("1:1:",)]
        run(small, small_settings, *MODELS)
        assert connection.execute("select from raw.columns where fill_from is not null").fetchall() == []
        assert law(connection)["waiting"] == 0
