"""The package that declares the served tables as sources, for the dbt project of an analyst."""

from pathlib import Path

import psycopg
import pytest
import yaml

from loader.postgres.database import Database
from loader.settings import Settings
from tests.conftest import loader_here
from tests.support.dbt_runs import run, run_dbt
from tests.support.factories import insert_event
from tests.support.folders import ROOT


def test_an_analyst_reads_the_tables_by_source(small: Database, small_settings: Settings, tmp_path: Path) -> None:
    """The role of a reader is enough. A found table and a second source are in the package, with their columns."""
    loader = loader_here(small_settings)
    assert loader("source", "add", "My Shop").returncode == 0
    with small.connect(autocommit=True) as connection:
        insert_event(connection, "email_opened", "a")
        insert_event(connection, "order_placed", "b", source="my_shop")
    assert loader("rescan").returncode == 0
    run(small, small_settings)
    reader = loader("reader", "add", "analyst").stdout.strip()

    package = tmp_path / "iterable_sources"
    written = loader("dbt-sources", "--folder", str(package))
    assert written.stdout.split() == [str(package / "dbt_project.yml"), str(package / "models" / "sources.yml")]
    [iterable, shop] = yaml.safe_load((package / "models" / "sources.yml").read_text())["sources"]
    assert (iterable["name"], shop["name"]) == ("iterable", "my_shop")
    assert "order_placed" in {table["name"] for table in shop["tables"]}
    [opened] = [table for table in iterable["tables"] if table["name"] == "email_opened"]
    campaign = next(column for column in opened["columns"] if column["name"] == "campaign_id")
    assert campaign["data_type"] == "bigint"
    assert campaign["description"].startswith("Campaign of Iterable")

    project = tmp_path / "analytics"
    (project / "models").mkdir(parents=True)
    opens, orders = "{{ source('iterable', 'email_opened') }}", "{{ source('my_shop', 'order_placed') }}"
    sql = f"select (select count(*) from {opens}) + count(*) as events from {orders}"
    (project / "models" / "events.sql").write_text(sql)
    settings = {"name": "analytics", "version": "1.0.0", "profile": "iterable_warehouse"}
    (project / "dbt_project.yml").write_text(yaml.safe_dump(settings))
    (project / "packages.yml").write_text(yaml.safe_dump({"packages": [{"local": "../iterable_sources"}]}))
    (project / "profiles.yml").write_bytes((ROOT / "dbt_project" / "profiles.yml").read_bytes())
    for command in (["deps"], ["show", "--select", "events"]):
        code, output = run_dbt(reader, project, *command)
        assert code == 0, output
    compiled = (project / "target" / "compiled" / "analytics" / "models" / "events.sql").read_text()
    with psycopg.connect(reader) as connection:
        assert connection.execute(compiled).fetchone() == (2,)  # type: ignore[call-overload]

    assert loader("dbt-sources", "--folder", str(package)).returncode == 0
    refused = loader("dbt-sources", "--folder", str(project))
    assert (refused.returncode, "has another dbt project" in refused.stderr) == (2, True)


@pytest.mark.parametrize("description", ["{{ doc('x') }}", "{% macro x() %}", "{# x #}"])
def test_a_comment_with_jinja_stays_text(
    small: Database, small_settings: Settings, tmp_path: Path, description: str
) -> None:
    """Dbt would execute the comment of a column that a person has written."""
    with small.connect(autocommit=True) as connection:
        comment = psycopg.sql.SQL("comment on column iterable.email_opened.email is {}").format(description)
        connection.execute(comment)
    assert loader_here(small_settings)("dbt-sources", "--folder", str(tmp_path / "package")).returncode == 0
    text = (tmp_path / "package" / "models" / "sources.yml").read_text()
    assert not any(mark in text for mark in ("{{", "{%", "{#"))
