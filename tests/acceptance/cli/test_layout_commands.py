"""The commands about columns and tables: their output, and the advice in it."""

import json
from pathlib import Path

import psycopg
import pytest
import yaml

from loader.settings import Settings
from tests.conftest import Loader
from tests.support.dbt_runs import copied_project, run_dbt
from tests.support.served_tables import TABLES


def load(run: Loader, folder: Path, *calls: dict[str, object]) -> None:
    """Load track calls."""
    path = folder / f"{calls[0]['messageId']}.ndjson"
    path.write_text("\n".join(json.dumps({"type": "track", "userId": "u"} | call) for call in calls), encoding="utf-8")
    assert run("load", str(path)).returncode == 0


def transform(run: Loader) -> None:
    """Fill the tables of these tests."""
    done = run("transform", "--select", "email_opened found_collections tracks")
    assert done.returncode == 0, done.stderr


def test_status_and_schema_show_found_columns_collisions_and_waiting_columns(
    served_loader: Loader, served_settings: Settings, tmp_path: Path
) -> None:
    """A blocking view, a collision, a found column and a table over the limit are named with the command that helps."""
    load(served_loader, tmp_path, {"event": "Email Opened", "messageId": "a", "properties": {"vip": True, "id": 1}})
    transform(served_loader)
    with psycopg.connect(served_settings.database_url) as connection:
        connection.execute("create view public.vips as select vip from iterable.email_opened")
    load(served_loader, tmp_path, {"event": "Email Opened", "messageId": "b", "properties": {"vip": "gold"}})
    transform(served_loader)

    shown = served_loader("status").stdout
    assert "`loader widen`" in shown
    assert "vips" in shown
    told = json.loads(served_loader("status", "--json").stdout)
    assert told["waiting_columns"] == [
        {
            "source": "iterable",
            "table": "email_opened",
            "column": "vip",
            "type": "boolean",
            "wanted": "text",
            "in_the_way": "public.vips",
        }
    ]
    assert told["collisions"] == [{"source": "iterable", "table": "email_opened", "reason": "layout", "properties": 1}]
    assert [(row["column"], row["event"]) for row in told["found"]] == [("vip", "a")]

    widened = served_loader("widen")
    assert (widened.returncode, widened.stdout) == (0, "iterable.email_opened.vip is text now.\n")
    assert served_loader("widen").stdout == "No column is waiting for a wider type.\n"
    assert served_loader("sql", "select vip from public.vips order by 1", "--format", "csv").stdout.split() == [
        "vip",
        "gold",
        "true",
    ]

    columns = {row["column"]: row for row in json.loads(served_loader("schema", "email_opened", "--json").stdout)}
    vip = columns["vip"]
    assert (vip["type"], vip["origin"], vip["path"], vip["first_event"]) == ("text", "found", "properties.vip", "a")
    assert vip["filled"] == 1.0
    assert (columns["campaign_id"]["origin"], columns["campaign_id"]["filled"]) == ("declared", 0.0)


def test_a_scaffolded_model_takes_the_table_over(
    served_loader: Loader, served_settings: Settings, tmp_path: Path
) -> None:
    """In the dbt project, the model continues the existing table. No row is lost and no column changes."""
    hostile = {"total": 5, "Ship To": {"city": "Köln"}, "a.b": "dot", "{{ env_var('HOME') }}": 1}
    load(served_loader, tmp_path, {"event": "Order Placed", "messageId": "a", "properties": hostile})
    transform(served_loader)
    before = served_loader("schema", "order_placed", "--json").stdout
    project = copied_project(served_settings)

    written = served_loader("scaffold", "Order Placed", "--folder", str(project / "models" / "iterable"))
    assert (written.returncode, len(written.stdout.splitlines())) == (0, 2)
    assert "env_var" not in (project / "models" / "iterable" / "order_placed.yml").read_text(encoding="utf-8")
    tracks = project / "models" / "iterable" / "tracks.yml"
    listed = yaml.safe_load(tracks.read_text(encoding="utf-8"))
    [union] = [test for test in listed["models"][0]["data_tests"] if "union_of_collections" in test]
    union["union_of_collections"]["arguments"]["collections"].append("ref('order_placed')")
    tracks.write_text(yaml.safe_dump(listed), encoding="utf-8")

    load(served_loader, tmp_path, {"event": "Order Placed", "messageId": "b", "properties": hostile})
    code, output = run_dbt(served_settings.database_url, project, "build", "--select", "order_placed", "tracks")
    assert code == 0, output
    rows = json.loads(
        served_loader("sql", "select * from iterable.order_placed order by id", "--format", "json").stdout
    )
    assert [(row["id"], row["total"], row["ship_to_city"], row["a_b"], row["env_var_home"]) for row in rows] == [
        ("a", 5, "Köln", "dot", 1),
        ("b", 5, "Köln", "dot", 1),
    ]
    names = [row["column"] for row in json.loads(served_loader("schema", "order_placed", "--json").stdout)]
    assert names == [row["column"] for row in json.loads(before)]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("Never Seen", "No event named Never Seen has landed"),
        ("Email Opened", "has a model already"),
    ],
)
def test_a_model_is_written_only_for_an_event_without_one(
    served_loader: Loader, tmp_path: Path, event: str, said: str
) -> None:
    """Another event is refused with one line that gives the reason, and no file is written."""
    load(served_loader, tmp_path, {"event": "Email Opened", "messageId": "a"})
    refused = served_loader("scaffold", event, "--folder", str(tmp_path / "models"))
    assert (refused.returncode, said in refused.stderr) == (2, True)
    assert not (tmp_path / "models").exists()


def test_d4_schema_lists_the_tables_and_shows_columns_on_demand(served_loader: Loader) -> None:
    """Without a name the list has a line for each table. A name may have its schema, and may be the event's."""
    listed = served_loader("schema")
    assert listed.returncode == 0
    assert len(listed.stdout.splitlines()) == 2 + len(TABLES)
    assert "`loader schema iterable.email_bounced`" in listed.stderr
    bare = served_loader("schema", "email_opened")
    assert bare.stdout.splitlines()[0] == "iterable.email_opened"
    assert "campaign_id" in bare.stdout
    for name in ("iterable.email_opened", "Email Opened"):
        assert served_loader("schema", name).stdout == bare.stdout
    both = served_loader("schema", "tracks", "iterable.email_opened").stdout.split("\n\n")
    assert [part.splitlines()[0] for part in both] == ["iterable.email_opened", "iterable.tracks"]
    everything = json.loads(served_loader("schema", "--json").stdout)
    assert {row["table"] for row in everything} == set(TABLES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("nope", "There is no table nope. `loader schema`"), ("email_opend", "Similar names: email_opened")],
)
def test_d4_schema_refuses_an_unknown_table(served_loader: Loader, name: str, hint: str) -> None:
    """The exit code means wrong use, and the error suggests similar tables."""
    for form in ((), ("--json",)):
        refused = served_loader("schema", name, *form)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert hint in refused.stderr


def test_d4_schema_without_tables_names_the_command_that_makes_tables(run_loader: Loader) -> None:
    """No table has been made yet, which is no error."""
    empty = run_loader("schema")
    assert (empty.returncode, empty.stdout) == (0, "No table has been made yet: `loader transform` makes them.\n")


def test_d5_the_first_line_of_status_shows_the_quarantine(served_loader: Loader, tmp_path: Path) -> None:
    """Messages in quarantine are in no table, so the first line has their share."""
    path = tmp_path / "events.ndjson"
    good = json.dumps({"type": "track", "event": "Email Opened", "userId": "u", "messageId": "a"})
    path.write_text(f"{good}\n" + "{broken\n" * 12, encoding="utf-8")
    assert served_loader("load", str(path)).returncode == 3
    first = served_loader("status").stdout.splitlines()[0]
    assert first.startswith("1 event landed; 1 event waiting")
    assert first.endswith("; 12 messages of 13 (92 %) in quarantine.")
    assert served_loader("quarantine", "discard", "--yes", "--load", "1").returncode == 0
    assert "quarantine" not in served_loader("status").stdout.splitlines()[0]
