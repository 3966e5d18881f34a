"""What dbt's users do to a project works, or is refused with a message that says what to do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from loader.postgres.database import Database
from loader.settings import Settings
from tests.integration.transform.test_targets import land_calls
from tests.support.dbt_runs import AS_PARSED, copied_project, run, run_dbt
from tests.support.served_tables import law

Dbt = Callable[..., tuple[int, str]]
DEVELOPER = AS_PARSED | {"LOADER_DEVELOPMENT_SCHEMA": "dbt_ci"}


@pytest.fixture
def connection(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit to a database with the tables of the small project."""
    with small.connect(autocommit=True) as opened:
        yield opened


@pytest.fixture
def project(small_settings: Settings, small: Database) -> Path:
    """Return a copy of the small project, in which the test changes files."""
    return copied_project(small_settings)


@pytest.fixture
def dbt(project: Path, small_settings: Settings) -> Dbt:
    """Run dbt in the copied project; return its exit code and its output in one line."""

    def run_in_copy(*arguments: str, artifacts: bool = False, **variables: str) -> tuple[int, str]:
        parsed_as = DEVELOPER | variables
        code, output = run_dbt(
            small_settings.database_url, project, *arguments, parsed_as=parsed_as, artifacts=artifacts
        )
        return code, " ".join(output.split())

    return run_in_copy


def change_model(project: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the yml of a model of the layout."""
    path = project / "models" / "iterable" / f"{name}.yml"
    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(described["models"][0])
    path.write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


def change_project(project: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the config of the project's models in dbt_project.yml."""
    path = project / "dbt_project.yml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(settings["models"]["iterable_warehouse"])
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def set_type(model: dict[str, Any], column: str, data_type: str) -> None:
    """Change the data_type of a column."""
    next(each for each in model["columns"] if each["name"] == column)["data_type"] = data_type


def type_of(connection: psycopg.Connection, column: str) -> str:
    """Return the type of a column of email_opened."""
    row = connection.execute(
        "select format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = 'iterable.email_opened'::regclass and attname = %s",
        (column,),
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_grants_reach_found_tables_and_the_schema(connection: psycopg.Connection, project: Path, dbt: Dbt) -> None:
    """The config of the project lets a role read every table. Roles of `loader reader add` keep their rights."""
    change_project(project, lambda models: models.update({"+grants": {"select": ["habits_analyst"]}}))
    connection.execute(
        """
        create role habits_analyst; create role habits_reader;
        insert into raw.readers (name) values ('habits_reader');
        select raw.admit_readers('iterable');
        """
    )
    try:
        land_calls(connection, "Email Opened", "a")
        land_calls(connection, "Order Placed", "b")
        for _ in range(2):
            code, output = dbt("run", "--select", "email_opened", "found_collections")
            assert code == 0, output
            for role in ("habits_analyst", "habits_reader"):
                with connection.transaction(force_rollback=True):
                    connection.execute(f"set local role {role}")
                    assert connection.execute("select id from iterable.email_opened").fetchall() == [("a",)]
                    assert connection.execute("select id from iterable.order_placed").fetchall() == [("b",)]
    finally:
        connection.execute("drop owned by habits_analyst, habits_reader; drop role habits_analyst, habits_reader")


def test_a_changed_data_type_is_refused_until_a_full_refresh(
    connection: psycopg.Connection, project: Path, dbt: Dbt
) -> None:
    """A run changes no type that it was not asked to change. A full refresh gives the column the type of the yml."""
    land_calls(connection, "Email Opened", "a", campaignId=7)
    assert dbt("run", "--select", "email_opened")[0] == 0
    change_model(project, "email_opened", lambda model: set_type(model, "campaign_id", "boolean"))
    land_calls(connection, "Email Opened", "b", campaignId=True)
    code, output = dbt("run", "--select", "email_opened")
    assert code == 1
    assert "Column campaign_id has type bigint, and the yml declares boolean." in output
    assert "--full-refresh --select email_opened" in output
    assert connection.execute("select id from iterable.email_opened").fetchall() == [("a",)]

    connection.execute("create view public.campaigns as select campaign_id from iterable.email_opened")
    code, output = dbt("run", "--full-refresh", "--select", "email_opened")
    assert code == 1
    assert "public.campaigns" in output
    connection.execute("drop view public.campaigns")
    code, output = dbt("run", "--full-refresh", "--select", "email_opened")
    assert code == 0, output
    assert type_of(connection, "campaign_id") == "boolean"
    rows = connection.execute("select id, campaign_id from iterable.email_opened order by id").fetchall()
    assert rows == [("a", None), ("b", True)]


def test_a_column_that_holds_the_declared_type_keeps_its_own(
    connection: psycopg.Connection, project: Path, dbt: Dbt
) -> None:
    """The run goes on with a warning, because a text column holds every value."""
    change_model(project, "email_opened", lambda model: set_type(model, "user_id", "bigint"))
    land_calls(connection, "Email Opened", "a", userId="12")
    code, output = dbt("run", "--select", "email_opened")
    assert code == 0, output
    assert "Column user_id has type text, and the yml declares bigint." in output
    assert type_of(connection, "user_id") == "text"


def test_config_that_a_table_cannot_have_is_refused(connection: psycopg.Connection, project: Path, dbt: Dbt) -> None:
    """The models fail with a message that says what to do, and their tables and cursors stay."""
    for name, config in (
        ("email_opened", {"alias": "deliveries"}),
        ("email_delivered", {"contract": {"enforced": True}}),
    ):
        change_model(project, name, lambda model: model.setdefault("config", {}).update(config))  # noqa: B023
    land_calls(connection, "Email Opened", "a")
    land_calls(connection, "Email Delivered", "b")
    code, output = dbt("run", "--select", "email_opened", "email_delivered", "found_collections")
    assert code == 1
    assert "has the alias deliveries. A table has the name of its event" in output
    assert "a run adds found columns that the contract does not list" in output
    assert connection.execute("select id from iterable.email_opened").fetchall() == []
    assert connection.execute("select id from iterable.email_delivered").fetchall() == []
    assert connection.execute("select to_regclass('iterable.deliveries')").fetchall() == [(None,)]


def test_versions_are_refused(connection: psycopg.Connection, project: Path, dbt: Dbt) -> None:
    """A second version would be a second table of one event."""
    change_model(project, "email_opened", lambda model: model.update(versions=[{"v": 1}], latest_version=1))
    code, output = dbt("run", "--select", "email_opened")
    assert code == 1
    assert "Model email_opened has versions." in output


OWN_SQL = "select * from ({{ collection() }}) as collected"


def write_model(project: Path, name: str, code: str, **properties: object) -> None:
    """Write a model of a team, with its yml."""
    models = project / "models" / "iterable"
    columns: list[dict[str, Any]] = [
        {"name": "id", "data_type": "character varying(1024)"},
        {"name": "received_at", "data_type": "timestamp with time zone"},
        {"name": "uuid_ts", "data_type": "timestamp with time zone"},
        {"name": "total", "data_type": "bigint", "config": {"meta": {"property": "total"}}},
    ]
    model = {"name": name, "columns": columns} | properties
    (models / f"{name}.sql").write_text(code, encoding="utf-8")
    (models / f"{name}.yml").write_text(yaml.safe_dump({"version": 2, "models": [model]}), encoding="utf-8")


def test_a_contract_holds_for_a_models_own_sql(connection: psycopg.Connection, project: Path, dbt: Dbt) -> None:
    """A model without found columns keeps its contract, and other columns in its SQL are refused."""
    config = {"contract": {"enforced": True}, "meta": {"found_columns": False}}
    write_model(project, "order_placed", OWN_SQL, config=config)
    land_calls(connection, "Order Placed", "a", total=5)
    code, output = dbt("run", "--select", "order_placed")
    assert code == 0, output
    assert connection.execute("select id, total from iterable.order_placed").fetchall() == [("a", 5)]
    model = project / "models" / "iterable" / "order_placed.sql"
    model.write_text(OWN_SQL.replace("*", "*, 1 as one"), encoding="utf-8")
    code, output = dbt("run", "--select", "order_placed")
    assert code == 1
    assert "This model has an enforced contract that failed" in output
    assert "one" in output
    model.write_text(OWN_SQL, encoding="utf-8")
    code, output = dbt("run", "--select", "order_placed", "--target", "dev")
    assert code == 0, output
    assert connection.execute("select id, total from dbt_ci_iterable.order_placed").fetchall() == [("a", 5)]


def test_an_alias_names_the_event_of_a_teams_model(connection: psycopg.Connection, project: Path, dbt: Dbt) -> None:
    """A team may call its file something else than the event."""
    write_model(project, "shop_orders", "{{ collection() }}", config={"alias": "order_placed"})
    land_calls(connection, "Order Placed", "a", total=5)
    code, output = dbt("run", "--select", "shop_orders", "found_collections")
    assert code == 0, output
    assert connection.execute("select id, total from iterable.order_placed").fetchall() == [("a", 5)]


def test_a_removed_or_disabled_model_leaves_its_table_to_the_found_tables(
    connection: psycopg.Connection, project: Path, dbt: Dbt
) -> None:
    """The tables keep their rows, and new events go on coming in."""
    land_calls(connection, "Email Opened", "a")
    land_calls(connection, "Email Delivered", "c")
    assert dbt("run")[0] == 0
    for path in (project / "models" / "iterable").glob("email_opened.*"):
        path.unlink()
    change_project(project, lambda models: models["iterable"].update(email_delivered={"+enabled": False}))
    land_calls(connection, "Email Opened", "b", coupon="x")
    land_calls(connection, "Email Delivered", "d", coupon="x")
    code, output = dbt("build")
    assert code == 0, output
    for table, ids in (("email_opened", "ab"), ("email_delivered", "cd")):
        rows = connection.execute(f"select id, coupon from iterable.{table} order by id").fetchall()
        assert rows == [(ids[0], None), (ids[1], "x")]
    assert law(connection)["waiting"] == 0


def test_store_failures_keeps_the_rows_that_failed(connection: psycopg.Connection, dbt: Dbt) -> None:
    """Every data test can store its rows, with and without filled tables."""
    code, output = dbt("test", "--store-failures", "--select", "test_type:data")
    assert code == 0, output
    land_calls(connection, "Email Opened", "a", "b")
    land_calls(connection, "Order Placed", "c")
    assert dbt("run")[0] == 0
    connection.execute("delete from iterable.email_opened where id = 'a'")
    code, output = dbt("test", "--store-failures", "--select", "test_type:data")
    assert code == 1
    failures = connection.execute(
        "select model, rows_in_table, ids_in_raw from dbt_test__audit.matches_raw_email_opened_"
    ).fetchall()
    assert failures == [("email_opened", 1, 2)]


def test_source_freshness_reads_no_more_than_an_index(connection: psycopg.Connection, project: Path, dbt: Dbt) -> None:
    """The last landed event is fresh for a day, and finding it does not read the events."""
    land_calls(connection, "Email Opened", "a")
    code, output = dbt("source", "freshness", artifacts=True)
    assert code == 0, output
    results = json.loads((project / "target" / "sources.json").read_text(encoding="utf-8"))["results"]
    assert [result["status"] for result in results] == ["pass"]
    connection.execute("update raw.events set landed_at = now() - interval '2 days'")
    code, output = dbt("source", "freshness")
    assert "WARN freshness of raw.events" in output

    sources = yaml.safe_load((project / "models" / "raw" / "sources.yml").read_text(encoding="utf-8"))
    query = sources["sources"][0]["tables"][0]["config"]["loaded_at_query"]
    connection.execute("set enable_seqscan = off")
    plan = "\n".join(row[0] for row in connection.execute("explain " + query))
    assert "Index Scan Backward" in plan
    assert "Seq Scan" not in plan
    assert "->  Sort" not in plan


def test_retry_fills_the_tables_that_failed(connection: psycopg.Connection, project: Path, dbt: Dbt) -> None:
    """`dbt retry` begins a run of its own, with the models that failed."""
    land_calls(connection, "Email Opened", "a")
    model = project / "models" / "iterable" / "email_opened.sql"
    code = model.read_text(encoding="utf-8")
    model.write_text(code + "{{ exceptions.raise_compiler_error('broken') if execute }}", encoding="utf-8")
    assert dbt("run", artifacts=True)[0] == 1
    model.write_text(code, encoding="utf-8")
    code_, output = dbt("retry")
    assert code_ == 0, output
    assert connection.execute("select id from iterable.email_opened").fetchall() == [("a",)]
    runs = connection.execute("select status from raw.transforms order by started_at desc limit 2").fetchall()
    assert runs == [("success",), ("error",)]


def test_the_loader_fills_production_although_dbts_environment_names_another_target(
    connection: psycopg.Connection, small: Database, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A developer's DBT_TARGET does not make a transform or a scheduler leave production unfilled."""
    monkeypatch.setenv("DBT_TARGET", "dev")
    land_calls(connection, "Email Opened", "a")
    run(small, small_settings, "email_opened")
    assert connection.execute("select id from iterable.email_opened").fetchall() == [("a",)]


def test_a_pull_request_builds_the_changed_models_alone(
    connection: psycopg.Connection, project: Path, dbt: Dbt
) -> None:
    """With --defer, models that did not change are production's, and only the changed ones are built."""
    view = project / "models" / "openers.sql"
    view.write_text("select id from {{ ref('email_opened') }}", encoding="utf-8")
    land_calls(connection, "Email Opened", "a")
    code, output = dbt("run", artifacts=True)
    assert code == 0, output
    state = project / "state"
    state.mkdir()
    (project / "target" / "manifest.json").rename(state / "manifest.json")
    selection = ("--select", "state:modified+", "--state", "state", "--target", "dev")
    code, output = dbt("ls", *selection, "--quiet")
    assert (code, output) == (0, "")

    view.write_text("select id, 1 as opened from {{ ref('email_opened') }}", encoding="utf-8")
    code, output = dbt("build", "--defer", *selection)
    assert code == 0, output
    assert connection.execute("select * from dbt_ci.openers").fetchall() == [("a", 1)]
    assert connection.execute("select * from public.openers").fetchall() == [("a",)]
    assert connection.execute("select to_regclass('dbt_ci_iterable.email_opened')").fetchall() == [(None,)]
    definition = connection.execute("select pg_get_viewdef('dbt_ci.openers'::regclass)").fetchone()
    assert definition is not None
    assert "iterable.email_opened" in definition[0]

    change_model(
        project,
        "email_opened",
        lambda model: model["columns"].append(
            {"name": "opened_by", "data_type": "text", "config": {"meta": {"property": "openedBy"}}}
        ),
    )
    code, output = dbt("build", "--defer", *selection)
    assert code == 0, output
    definition = connection.execute("select pg_get_viewdef('dbt_ci.openers'::regclass)").fetchone()
    assert definition is not None
    assert "dbt_ci_iterable.email_opened" in definition[0]
