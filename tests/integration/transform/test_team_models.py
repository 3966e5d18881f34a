"""Models of a team: SQL around the macro, and the key that decides whether a run adds columns."""

import re
from collections.abc import Iterable, Iterator

import psycopg
import pytest
import yaml

from loader.events.segment import parse_lines
from loader.postgres.database import Database
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land as land_events
from loader.settings import Settings
from tests.support.dbt_runs import copied_project, run_dbt
from tests.support.folders import ROOT
from tests.support.served_tables import contents

COLUMNS: list[dict[str, object]] = [
    {"name": "id", "data_type": "character varying(1024)", "description": ""},
    {"name": "received_at", "data_type": "timestamp with time zone", "description": ""},
    {"name": "uuid_ts", "data_type": "timestamp with time zone", "description": ""},
    {"name": "user_id", "data_type": "text", "description": ""},
    {"name": "event", "data_type": "text", "description": ""},
    {"name": "total", "data_type": "bigint", "description": "", "config": {"meta": {"property": "total"}}},
]
WRAPPED = """
with collected as (
    {{ collection() }}
)

select id, received_at, uuid_ts, user_id, event, total * 100 as total
from collected
where total is not null
"""
NO_MACRO = """
select
    message_id as id,
    received_at,
    now() as uuid_ts,
    payload ->> 'userId' as user_id,
    collection as event,
    7 as total
from {{ source('raw', 'events') }}
where {{ event_filter('order_placed') }} and {{ since_last_run() }}
"""


class Team:
    """A copy of the dbt project with models of a team, most often one for the event Order Placed."""

    def __init__(self, settings: Settings, connection: psycopg.Connection) -> None:
        self.url = settings.database_url
        self.project = copied_project(settings)
        self.connection = connection

    def write(self, code: str, name: str = "order_placed", **meta: object) -> None:
        """Write a model's SQL, and a yml with some keys in its `config.meta`."""
        models = self.project / "models" / "iterable"
        model: dict[str, object] = {"name": name, "description": "", "columns": COLUMNS}
        if meta:
            model["config"] = {"meta": meta}
        (models / f"{name}.sql").write_text(code, encoding="utf-8")
        (models / f"{name}.yml").write_text(yaml.safe_dump({"version": 2, "models": [model]}), encoding="utf-8")

    def forget_the_projects_key(self) -> None:
        """Remove the key from dbt_project.yml, as in a project of an older version, before a model is written."""
        path = self.project / "dbt_project.yml"
        project = yaml.safe_load(path.read_text(encoding="utf-8"))
        project["models"]["iterable_warehouse"]["iterable"].pop("+meta")
        path.write_text(yaml.safe_dump(project), encoding="utf-8")
        code, output = run_dbt(self.url, self.project, "parse")
        assert code == 0, output

    def land(self, *calls: str, event: str = "Order Placed") -> None:
        """Land events, each given as the id, the user and the properties."""
        lines = []
        for call in calls:
            message_id, user, properties = call.split(" ", 2)
            lines.append(
                f'{{"type":"track","event":"{event}","messageId":"{message_id}","userId":"{user}",'
                f'"properties":{properties}}}'
            )
        with SchemaRegistry().transaction(self.connection) as seen:
            land_events(self.connection, "iterable", "file", parse_lines("\n".join(lines).encode(), 0), seen)

    def run(self, *arguments: str, models: Iterable[str] = ("order_placed", "tracks")) -> tuple[int, str]:
        """Run some models."""
        return run_dbt(self.url, self.project, "run", "--select", *models, *arguments)

    def rows(self, columns: str, table: str = "order_placed") -> list[tuple[object, ...]]:
        """Return some columns of a table."""
        return self.connection.execute(f"select {columns} from iterable.{table} order by id").fetchall()  # type: ignore[arg-type]

    def columns(self) -> set[str]:
        """Return the names of the table's columns."""
        found = self.connection.execute(
            "select attname from pg_attribute where attrelid = 'iterable.order_placed'::regclass and attnum > 0"
        )
        return {name for (name,) in found}


@pytest.fixture
def team(small: Database, small_settings: Settings) -> Iterator[Team]:
    """Return a team's project, with its connection."""
    with small.connect(autocommit=True) as connection:
        yield Team(small_settings, connection)


# The macro's own call, with comments and in several spellings, by the name of a model.
CALLS = {
    "order_placed": "-- orders of the shop\n{{ collection() }}\n",
    "order_paid": "/* orders\n   of the shop */\n{{  collection( every_event = false )  }}  -- all of them\n",
    "order_sent": "{# orders #}\n{{ config(tags=['shop']) }}\n{{ collection(every_event=false) }}",
}


@pytest.mark.parametrize("with_key", [True, False])
def test_a6_comments_and_spelling_of_the_macro_call_do_not_matter(team: Team, with_key: bool) -> None:
    """The macro's call gets the columns of the events, whatever its spelling, and a rebuild changes nothing."""
    if not with_key:
        team.forget_the_projects_key()
    for name, code in CALLS.items():
        team.write(code, name)
        event = name.replace("_", " ").title()
        team.land('a u {"total":5,"coupon":"x"}', 'b u {"total":6,"coupon":"y"}', event=event)
    code_, output = team.run(models=CALLS)
    assert code_ == 0, output
    for name in CALLS:
        assert team.rows("id, total, coupon", name) == [("a", 5, "x"), ("b", 6, "y")]
    before = {name: contents(team.connection, f"iterable.{name}") for name in CALLS}
    assert team.run("--full-refresh", models=CALLS)[0] == 0
    assert {name: contents(team.connection, f"iterable.{name}") for name in CALLS} == before


def test_a6_wrapped_sql_works_with_repeated_ids(team: Team) -> None:
    """Of several events with one id, the first landed counts, within a run and across runs. No column is added."""
    team.write(WRAPPED, found_columns=False)
    team.land('a first {"total":1,"coupon":"x"}', 'a second {"total":2}', 'b u {"total":3}', 'c u {"other":1}')
    code, output = team.run()
    assert code == 0, output
    team.land('a third {"total":4}', 'd first {"total":5}', 'd second {"total":6}')
    code, output = team.run()
    assert code == 0, output
    assert team.rows("id, user_id, total") == [("a", "first", 100), ("b", "u", 300), ("d", "first", 500)]
    assert team.columns() == {str(column["name"]) for column in COLUMNS}
    before = contents(team.connection, "iterable.order_placed")
    assert team.run("--full-refresh")[0] == 0
    assert contents(team.connection, "iterable.order_placed") == before


def test_a6_the_key_false_keeps_the_macros_own_call_to_the_declared_columns(team: Team) -> None:
    """The key decides, not the text. No found column is added or recorded."""
    team.write("{{ collection() }}\n", found_columns=False)
    team.land('a u {"total":1,"coupon":"x"}')
    code, output = team.run()
    assert code == 0, output
    assert team.rows("id, total") == [("a", 1)]
    assert team.columns() == {str(column["name"]) for column in COLUMNS}
    recorded = team.connection.execute("select column_name from raw.columns where model = 'order_placed'").fetchall()
    assert {name for (name,) in recorded} <= team.columns()


def test_a6_sql_that_is_not_the_macro_runs_as_it_is(team: Team) -> None:
    """With the key set to false, any SQL runs."""
    team.write(NO_MACRO, found_columns=False)
    team.land('a u {"total":1}')
    code, output = team.run()
    assert code == 0, output
    assert team.rows("id, user_id, total") == [("a", "u", 7)]


OTHER_SQL = {"order_placed": WRAPPED, "order_paid": NO_MACRO, "order_sent": "{{ collection(every_event=true) }}"}


@pytest.mark.parametrize("meta", [{}, {"found_columns": True}, {"found_columns": "no"}])
def test_a6_other_sql_without_the_key_is_refused_with_its_name(team: Team, meta: dict[str, object]) -> None:
    """Each model fails, its cursor stays, and the error names the key to set.

    The SQL is neither replaced nor ignored.
    """
    if not meta:
        team.forget_the_projects_key()
    for name, code in OTHER_SQL.items():
        team.write(code, name, **meta)
        team.land('a u {"total":1}', event=name.replace("_", " ").title())
    failed, output = team.run(models=OTHER_SQL)
    assert failed == 1
    for name in OTHER_SQL:
        assert re.search(rf"model {name} .*\n.*found_columns", output), output
    assert team.connection.execute("select from raw.cursors where model like 'order%'").fetchall() == []


def test_a6_the_projects_own_models_say_that_they_take_found_columns() -> None:
    """The key is in one place for all tables of the layout, dbt_project.yml."""
    project = yaml.safe_load((ROOT / "dbt_project" / "dbt_project.yml").read_text("utf-8"))
    assert project["models"]["iterable_warehouse"]["iterable"]["+meta"] == {"found_columns": True}
