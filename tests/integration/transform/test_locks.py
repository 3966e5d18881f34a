"""Runs beside sessions with locks: every run ends, the other tables are filled, and no event is lost."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest
import yaml

import loader.postgres.database
import loader.raw.rescan
import loader.transform.status
from loader.errors import TransformError
from loader.postgres.database import Database, bundled, open_database
from loader.settings import Settings
from loader.transform.dbt import transform
from loader.transform.scheduler import Schedule
from tests.conftest import loader_here, open_settings
from tests.integration.transform.test_found_columns import MODELS, Warehouse
from tests.integration.transform.test_schedule import await_state, scheduled, shorten_pauses
from tests.support.dbt_runs import copied_project, run_dbt
from tests.support.factories import insert_payload
from tests.support.served_tables import everything, law
from tests.support.waiting import wait_until

DUE = "update raw.held_tables set next_try_at = clock_timestamp()"
NOT_DUE = "update raw.held_tables set next_try_at = clock_timestamp() + interval '1 hour'"
# Table locks from the weakest to the strongest, those that block a new column, and those that block rows.
MODES = {
    "access share": (True, False),
    "row share": (True, False),
    "row exclusive": (True, False),
    "share update exclusive": (True, False),
    "share": (True, True),
    "share row exclusive": (True, True),
    "exclusive": (True, True),
    "access exclusive": (True, True),
}


@pytest.fixture
def warehouse(small: Database, small_settings: Settings) -> Iterator[Warehouse]:
    """Return a warehouse with few models."""
    with small.connect(autocommit=True) as connection:
        yield Warehouse(small, small_settings, connection)


@pytest.fixture
def impatient(small_settings: Settings) -> Settings:
    """Return settings of its database, for runs and commands that wait for a lock for a moment only."""
    return small_settings.model_copy(update={"lock_wait": 0.3})


@contextmanager
def lock(url: str, table: str, mode: str) -> Iterator[int]:
    """Hold a lock in a transaction that does nothing else; yield the process that holds the lock."""
    with psycopg.connect(url, application_name="Metabase") as holder:
        holder.execute(f"lock table {table} in {mode} mode".encode())
        yield holder.info.backend_pid
        holder.rollback()


def test_b1_a_locked_table_gets_its_rows_without_the_column(warehouse: Warehouse) -> None:
    """While a BI session holds the tables, runs name the session and continue. Later the columns are added and filled.

    That run needs no new event of the collection, and the collection needs no model.
    """
    warehouse.land({"campaignId": 1})
    warehouse.land({}, event="Order Placed")
    warehouse.run()
    with lock(warehouse.database.url, "iterable.email_opened, iterable.order_placed", "access share") as process:
        warehouse.land({"coupon": "a", "size": 1})
        warehouse.land({"coupon": "b"}, event="Email Delivered")
        warehouse.land({"total": 5}, event="Order Placed")
        warehouse.run()
        warehouse.connection.execute(NOT_DUE)
        warehouse.land({"coupon": "c", "size": 2})
        warehouse.run()
        assert warehouse.type_of("email_opened", "coupon") is None
        assert warehouse.rows("select id from iterable.email_opened order by id") == [("e1",), ("e3",), ("e6",)]
        assert warehouse.rows("select coupon from iterable.email_delivered") == [("b",)]
        assert warehouse.rows("select tries from raw.held_tables") == [(1,), (1,)]
        shown = loader_here(warehouse.settings)("status").stdout
        assert f"process {process} (user " in shown
        assert "Metabase" in shown
        done = loader_here(warehouse.settings)("transform", "--select", "email_opened")
        assert done.returncode == 0
        assert "Warning: iterable.email_opened: column coupon waits for type text." in done.stderr
    schedule = Schedule(warehouse.settings, 1)
    schedule._unmade = schedule._find_unmade(warehouse.connection)
    assert not schedule._has_news(warehouse.connection)
    warehouse.connection.execute(DUE)
    assert schedule._has_news(warehouse.connection)
    warehouse.run()
    assert warehouse.rows("select id, coupon, size from iterable.email_opened order by id") == [
        ("e1", None, None),
        ("e3", "a", 1),
        ("e6", "c", 2),
    ]
    assert warehouse.rows("select id, total from iterable.order_placed order by id") == [("e2", None), ("e5", 5)]
    assert warehouse.rows("select * from raw.held_tables") == []
    assert warehouse.rows("select * from raw.columns where is_missing or fill_from is not null") == []
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


def test_b1_a_late_column_takes_the_value_of_the_rows_event(warehouse: Warehouse) -> None:
    """An id from before the column was first missed has a row without the value, as in a rebuild."""
    warehouse.land({})
    warehouse.run()
    warehouse.connection.execute("update raw.events set message_id = 'same'")
    warehouse.connection.execute("update iterable.email_opened set id = 'same'")
    warehouse.connection.execute("update iterable.tracks set id = 'same'")
    with lock(warehouse.database.url, "iterable.email_opened", "access share"):
        warehouse.land({"coupon": "a"}, {"coupon": "b"})
        warehouse.connection.execute("update raw.events set message_id = 'same' where message_id = 'e2'")
        warehouse.run()
    warehouse.connection.execute(DUE)
    warehouse.run()
    assert warehouse.rows("select id, coupon from iterable.email_opened order by id") == [("e3", "b"), ("same", None)]
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


def test_b1_a_declared_column_is_filled_from_all_events(warehouse: Warehouse) -> None:
    """A declared column that a lock blocked has the values of all rows when it is added."""
    # The registry has no properties of these events, so a run finds no column for them.
    for number, total in enumerate((5, "much"), start=1):
        insert_payload(warehouse.connection, f"e{number}", {"properties": {"total": total}})
    warehouse.run()
    project = copied_project(warehouse.settings)
    model = project / "models" / "iterable" / "email_opened.yml"
    described = yaml.safe_load(model.read_text(encoding="utf-8"))
    described["models"][0]["columns"].append(
        {
            "name": "total",
            "data_type": "numeric",
            "description": "The total.",
            "config": {"meta": {"property": "total"}},
        }
    )
    model.write_text(yaml.safe_dump(described), encoding="utf-8")
    run = partial(run_dbt, warehouse.settings.database_url, project, "run", "--select", "email_opened")
    with lock(warehouse.database.url, "iterable.email_opened", "access share"):
        insert_payload(warehouse.connection, "e3", {"properties": {"total": 6}})
        code, output = run()
        assert code == 0, output
        assert "columns could not be added or described" in output
        assert warehouse.type_of("email_opened", "total") is None
    warehouse.connection.execute(DUE)
    code, output = run()
    assert code == 0, output
    assert warehouse.rows("select id, total from iterable.email_opened order by id") == [
        ("e1", 5),
        ("e2", None),
        ("e3", 6),
    ]
    before = everything(warehouse.connection)
    assert ("email_opened", "e2", "total", "much") in before["mismatches"]
    code, output = run("--full-refresh")
    assert code == 0, output
    assert everything(warehouse.connection) == before


# The weakest lock, the weakest lock that blocks rows, and the strongest lock. `make test-heavy` has all of them.
FEW = ("access share", "share", "access exclusive")


def modes(*light: str) -> list[object]:
    """Return all modes as parameters; only the given ones are not heavy."""
    return [pytest.param(each, marks=() if each in light else pytest.mark.heavy) for each in MODES]


@pytest.mark.parametrize("mode", modes("access share", "access exclusive"))
def test_b1_a_run_ends_beside_every_lock_on_a_table(warehouse: Warehouse, mode: str) -> None:
    """An increment, a new column, a wider type and a full refresh end. After the lock, the tables equal a rebuild."""
    stops_columns, stops_rows = MODES[mode]
    warehouse.land({"vip": True}, {"campaignId": 1})
    warehouse.run()
    with lock(warehouse.database.url, "iterable.email_opened", mode):
        warehouse.land({"vip": "gold", "coupon": "a"}, {"campaignId": "x"})
        warehouse.land({}, event="Email Delivered")
        warehouse.land({}, event="Order Placed")
        warehouse.run()
        counted = warehouse.rows("select count(*) from iterable.email_delivered, iterable.order_placed")
        assert counted == [(1,)]
        assert (warehouse.type_of("email_opened", "coupon") is None) == stops_columns
        assert warehouse.rows("select read_rows from raw.cursors where model = 'email_opened'") == [
            (2 if stops_rows else 4,)
        ]
        assert {held for (held,) in warehouse.rows("select held from raw.held_tables")} == {
            *(["columns"] if stops_columns else []),
            *(["fill"] if stops_rows else []),
        }
        warehouse.run(full_refresh=True)
    warehouse.connection.execute(DUE)
    warehouse.run()
    assert warehouse.rows("select * from raw.held_tables") == []
    assert warehouse.rows("select vip, coupon from iterable.email_opened where id = 'e3'") == [("gold", "a")]
    assert law(warehouse.connection)["waiting"] == 0
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


def test_b1_a_lock_on_a_partition_loses_nothing(warehouse: Warehouse, impatient: Settings) -> None:
    """A run ends, though it may fail. When the lock is free, the tables equal a rebuild."""
    warehouse.land({"vip": True})
    warehouse.run()
    warehouse.land({"vip": "gold", "coupon": "a"}, {"campaignId": "x"})
    locked = lock(warehouse.database.url, "raw.events_email_opened", "access exclusive")
    with locked, suppress(TransformError):
        transform(warehouse.database, impatient, select=MODELS)
    warehouse.connection.execute(DUE)
    warehouse.run()
    assert law(warehouse.connection)["waiting"] == 0
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


# Tables of the raw schema that a run reads or writes, and the weakest lock on each that blocks the run.
RAW = {
    "raw.events": "access exclusive",
    "raw.sources": "access exclusive",
    "raw.transforms": "share",
    "raw.cursors": "share",
    "raw.syncs": "share",
    "raw.mismatches": "share",
}


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.heavy), False], ids=["first run", "later run"])
def test_b1_a_run_names_the_session_that_locks_the_raw_schema(
    first: bool, warehouse: Warehouse, impatient: Settings
) -> None:
    """This holds for the first run and a later run. No run waits forever, and after the lock no row is missing."""
    locked = RAW
    if first:
        warehouse.connection.execute("drop schema iterable cascade; delete from raw.cursors; delete from raw.syncs")
        # A first run writes these tables in another way than a later run does.
        locked = {table: RAW[table] for table in ("raw.cursors", "raw.syncs", "raw.mismatches")}
    else:
        warehouse.land({"size": 1}, {"size": 2})
        warehouse.run()
    warehouse.land({"size": "large"}, {"size": 4, "campaignId": "x"})
    for table, mode in locked.items():
        with lock(warehouse.database.url, table, mode) as process:
            done = loader_here(impatient)("transform")
        assert done.returncode == 1, table
        assert f"held by process {process} of user" in done.stderr, (table, done.stderr)
        assert table in done.stderr
    warehouse.run()
    assert law(warehouse.connection)["waiting"] == 0
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


@pytest.mark.parametrize("mode", modes(*FEW))
def test_b1_a_load_ends_beside_every_lock_on_the_events(
    warehouse: Warehouse, impatient: Settings, tmp_path: Path, mode: str
) -> None:
    """The load lands the file, or names the blocking session. The same command then lands every event once."""
    file = tmp_path / "events.ndjson"
    file.write_text('{"type":"track","event":"Email Opened","messageId":"a","userId":"u"}\n', encoding="utf-8")
    _, stops_rows = MODES[mode]
    with lock(warehouse.database.url, "raw.events", mode) as process:
        done = loader_here(impatient)("load", str(file))
        assert done.returncode == int(stops_rows), done.stderr
        if stops_rows:
            assert f"held by process {process} of user" in done.stderr
    assert loader_here(impatient)("load", str(file)).returncode == 0
    assert warehouse.rows("select message_id from raw.events") == [("a",)]


@pytest.mark.parametrize(
    ("table", "arguments"),
    [
        ("raw.loads", ["load", "{file}"]),
        ("raw.quarantine", ["quarantine", "list"]),
        ("raw.quarantine", ["quarantine", "retry", "--all"]),
        ("raw.sources", ["source", "add", "Other"]),
        ("raw.write_keys", ["key", "add", "Iterable"]),
        ("raw.columns", ["schema"]),
        ("raw.properties", ["rescan"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_b1_a_command_names_the_session_in_the_way(
    warehouse: Warehouse, impatient: Settings, tmp_path: Path, table: str, arguments: list[str]
) -> None:
    """No command waits forever for a locked table."""
    file = tmp_path / "events.ndjson"
    file.write_text('{"type":"track","event":"Email Opened","messageId":"a","userId":"u"}\n', encoding="utf-8")
    with lock(warehouse.database.url, table, "access exclusive") as process:
        done = loader_here(impatient)(*(argument.format(file=file) for argument in arguments))
    assert done.returncode == 1, done.stdout
    assert f"held by process {process} of user" in done.stderr
    assert table in done.stderr


def test_b1_the_scheduler_names_the_session_that_locks_the_events(
    warehouse: Warehouse, impatient: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler checks again until the lock is free."""
    shorten_pauses(monkeypatch)
    # Models of one run wait for each other, too.
    with scheduled(impatient.model_copy(update={"lock_wait": 1.0})):
        await_state(warehouse.connection, "idle")
        with lock(warehouse.database.url, "raw.events", "access exclusive") as process:
            wait_until(lambda: f"held by process {process} of user" in caplog.text, "the scheduler's report")
        warehouse.land({"size": 1})
        wait_until(lambda: warehouse.rows("select id from iterable.email_opened") == [("e1",)], "the row")


def test_b1_status_names_the_session_that_locks_a_table(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command does not wait forever for a locked table."""
    monkeypatch.setattr(loader.transform.status, "_LOCK_WAIT", "300ms")
    with lock(warehouse.database.url, "iterable.email_opened", "access exclusive") as process:
        done = loader_here(warehouse.settings)("status")
    assert done.returncode == 1
    assert f"process {process} of user" in done.stderr
    assert "iterable.email_opened" in done.stderr


def test_b1_migrate_names_the_session_in_the_way(
    empty_url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command lets other sessions pass between its tries, leaves the schema unchanged, and works after the lock."""
    older = tmp_path / "migrations"
    shutil.copytree(bundled("migrations"), older)
    for later in (older / "versions").glob("00*.*"):
        if later.stem >= "0028":
            later.unlink()
    settings = open_settings(empty_url, home)
    with monkeypatch.context() as patch:
        patch.setattr(loader.postgres.database, "bundled", lambda _: older)
        with open_database(settings, migrate_behind=True):
            pass
    monkeypatch.setattr(loader.postgres.database, "_MIGRATION_PAUSE_SECONDS", 0)
    monkeypatch.setattr(loader.postgres.database, "_MIGRATION_TRIES", 2)
    with lock(empty_url, "raw.columns", "access share") as process:
        done = loader_here(settings)("migrate")
        assert done.returncode == 1
        assert f"The raw schema is as it was: a lock was in the way, held by process {process}" in done.stderr
    assert loader_here(settings)("migrate").returncode == 0


def test_b1_rescan_names_a_transaction_that_does_not_end(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The found properties are recorded. The transaction may land events that the rescan did not read."""
    monkeypatch.setattr(loader.raw.rescan, "_LANDING_SECONDS", 0)
    with lock(warehouse.database.url, "raw.events", "row exclusive") as process:
        done = loader_here(warehouse.settings)("rescan")
        assert done.returncode == 1
        assert f"process {process} has held a transaction on raw.events open" in done.stderr
    assert loader_here(warehouse.settings)("rescan").returncode == 0
