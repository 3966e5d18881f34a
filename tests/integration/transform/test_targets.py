"""Development runs: a run on a target that is not production reads raw.events and writes to schemas of its own."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from loader.events.segment import parse_lines
from loader.raw.catalog import SchemaRegistry
from loader.raw.landing import land as land_events
from loader.settings import Settings
from tests.conftest import own_database
from tests.support.dbt_runs import AS_PARSED, run_dbt

ADA = AS_PARSED | {"LOADER_DEVELOPMENT_SCHEMA": "dbt_ada"}
# All databases of the server share its roles, and several processes may run these tests.
ROLE = f"developer_ada_{os.getpid()}"
# The tests that compare tables with raw.events.
COMPARISONS = ("test_name:matches_raw", "test_name:one_event", "test_name:found_tables")


def land_calls(
    connection: psycopg.Connection,
    event: str,
    *message_ids: str,
    source: str = "iterable",
    days_ago: int = 0,
    **properties: object,
) -> None:
    """Land events as a file does, in a transaction of some days ago; `userId` is no property."""
    user = properties.pop("userId", "u")
    lines = "\n".join(
        json.dumps({"type": "track", "event": event, "messageId": each, "userId": user, "properties": properties})
        for each in message_ids
    )
    with SchemaRegistry().transaction(connection) as seen:
        land_events(connection, source, "file", parse_lines(lines.encode(), 0), seen)
    connection.execute(
        "update raw.events set landed_at = now() - %s * interval '1 day' where message_id = any(%s)",
        (days_ago, list(message_ids)),
    )


@dataclass(frozen=True)
class Warehouse:
    """A filled warehouse, with its owner's connection, and the URL of a developer who may only read the schema raw."""

    owner: psycopg.Connection
    url: str
    developer_url: str
    project: Path

    def land(self, event: str, *message_ids: str, **fields: Any) -> None:
        """Land events, as `land_calls` does."""
        land_calls(self.owner, event, *message_ids, **fields)

    def run(self, *arguments: str, target: str = "dev", **variables: str) -> tuple[int, str]:
        """Run dbt on a target; on any but production as the developer."""
        url = self.url if target == "warehouse" else self.developer_url
        return run_dbt(url, self.project, *arguments, "--target", target, parsed_as=ADA | variables)

    def ids(self, table: str) -> list[str]:
        """Return the ids of a table."""
        return [row[0] for row in self.owner.execute(f"select id from {table} order by id")]  # type: ignore[arg-type]

    def state(self) -> dict[str, object]:
        """Return everything that belongs to production: each row of each table of its schemas."""
        tables = self.owner.execute(
            "select oid::regclass::text from pg_class where relkind = 'r' and relnamespace = any(%s::regnamespace[])",
            (["raw", "iterable", "other"],),
        ).fetchall()
        return {
            table: self.owner.execute(f"select array_agg(t::text order by t::text) from {table} as t").fetchone()
            for (table,) in tables
        }


@pytest.fixture(scope="module")
def warehouse(server: str, small_template: Settings, small_package: Path) -> Iterator[Warehouse]:
    """Return a warehouse of two sources whose production has run, with events of today and of ten days ago."""
    template = small_template.database_url.rsplit("/", 1)[1]
    with (
        own_database(server, small_template.home, template) as settings,
        psycopg.connect(settings.database_url, autocommit=True) as owner,
    ):
        address = urlsplit(settings.database_url)
        url = address._replace(netloc=f"{ROLE}:secret@{address.hostname}:{address.port}").geturl()
        warehouse = Warehouse(owner, settings.database_url, url, small_package / "dbt_project")
        owner.execute(
            f"""
            create role {ROLE} login password 'secret';
            grant create on database "{address.path[1:]}" to {ROLE};
            grant usage on schema raw to {ROLE};
            grant select on all tables in schema raw to {ROLE};
            insert into raw.sources (name, schema_name) values ('Other', 'other');
            update raw.cluster set adopted_at = now() - interval '30 days';
            """
        )
        warehouse.land("Email Opened", "old", days_ago=10)
        warehouse.land("Email Opened", "new1", "new2", "new1", coupon=1)
        warehouse.land("Email Opened", "elsewhere", source="other")
        warehouse.land("Order Placed", "order", total=5)
        try:
            code, output = warehouse.run("run", target="warehouse")
            assert code == 0, output
            yield warehouse
        finally:
            owner.execute(f"drop owned by {ROLE} cascade; drop role {ROLE}")


@dataclass(frozen=True)
class FirstRun:
    """The first development run.

    Attributes:
        tests_before: The exit code of `dbt test` before the run.
        output: The output of the run, in one line.
        before: The state of production before the run.
        after: The state of production after the run.
    """

    tests_before: int
    output: str
    before: dict[str, object]
    after: dict[str, object]


@pytest.fixture(scope="module")
def first_run(warehouse: Warehouse) -> FirstRun:
    """Run dbt on the target dev for the first time."""
    tests_before, _ = warehouse.run("test", "--select", *COMPARISONS)
    before = warehouse.state()
    code, output = warehouse.run("build")
    assert code == 0, output
    return FirstRun(tests_before, " ".join(output.split()), before, warehouse.state())


def test_a_development_run_writes_to_schemas_of_its_own(warehouse: Warehouse, first_run: FirstRun) -> None:
    """Tables, cursors, reports and records of production stay as they were, by a role that may only read them."""
    assert first_run.after == first_run.before
    assert len(first_run.before) > 40
    assert warehouse.ids("dbt_ada_iterable.email_opened") == ["new1", "new2"]
    assert warehouse.ids("dbt_ada_other.email_opened") == ["elsewhere"]
    assert warehouse.ids("dbt_ada_iterable.tracks") == ["new1", "new2", "order"]


def test_a_development_run_makes_found_columns_and_found_tables(warehouse: Warehouse, first_run: FirstRun) -> None:
    """The tables have the columns, key and comments that production's have."""
    columns = """
        select attname, format_type(atttypid, atttypmod), attnotnull, col_description(attrelid, attnum)
        from pg_attribute where attrelid = %s::regclass and attnum > 0 order by attnum
    """
    for table in ("email_opened", "order_placed", "tracks"):
        ours, production = (
            warehouse.owner.execute(columns, (f"{schema}.{table}",)).fetchall()
            for schema in ("dbt_ada_iterable", "iterable")
        )
        assert ours == production
    assert warehouse.owner.execute("select coupon from dbt_ada_iterable.email_opened").fetchall() == [(1,), (1,)]
    assert warehouse.owner.execute("select id, total from dbt_ada_iterable.order_placed").fetchall() == [("order", 5)]


def test_the_first_run_names_its_schemas_and_the_variable(warehouse: Warehouse, first_run: FirstRun) -> None:
    """A later run says nothing more."""
    assert "Target dev is not production" in first_run.output
    for name in ("dbt_ada_iterable, dbt_ada_other", "dbt_ada_raw", "production_targets", "warehouse, prod, production"):
        assert name in first_run.output
    code, output = warehouse.run("run", "--select", "email_delivered")
    assert code == 0, output
    assert "is not production" not in output


def test_a_later_run_makes_the_tables_again(warehouse: Warehouse, first_run: FirstRun) -> None:
    """A table has the events of as many days as the variable says, whatever was in the table before."""
    warehouse.owner.execute("insert into dbt_ada_iterable.email_opened (id) values ('stray')")
    code, output = warehouse.run("run", "--vars", "development_days: 30")
    assert code == 0, output
    assert warehouse.ids("dbt_ada_iterable.email_opened") == ["new1", "new2", "old"]
    code, output = warehouse.run("run", "--empty", "--select", "email_opened")
    assert code == 0, output
    assert warehouse.ids("dbt_ada_iterable.email_opened") == []
    runs = warehouse.owner.execute("select distinct status from dbt_ada_raw.transforms").fetchall()
    assert runs == [("success",)]


def test_the_tests_find_rows_that_a_development_table_lacks(warehouse: Warehouse, first_run: FirstRun) -> None:
    """The tests compare the tables of the target with the events that its last run read."""
    code, output = warehouse.run("run", "--select", "email_opened", "found_collections")
    assert code == 0, output
    assert warehouse.run("test", "--select", *COMPARISONS)[0] == 0
    warehouse.owner.execute("delete from dbt_ada_iterable.email_opened where id = 'new1'")
    warehouse.owner.execute("delete from dbt_ada_iterable.order_placed")
    code, output = warehouse.run("test", "--select", *COMPARISONS)
    assert code == 1
    assert "Failure in test matches_raw_email_opened" in output
    assert "Failure in test found_tables_found_collections" in output


def test_a_compiled_model_shows_found_columns_on_any_target(warehouse: Warehouse, first_run: FirstRun) -> None:
    """A developer sees the select that production runs."""
    code, output = warehouse.run("compile", "--select", "email_opened")
    assert code == 0, output
    assert 'as "coupon"' in output


def test_tests_before_a_first_run_have_nothing_to_compare(first_run: FirstRun) -> None:
    """A target without tables fails no test for that."""
    assert first_run.tests_before == 0


def test_a_target_that_the_variable_names_writes_to_productions_tables(warehouse: Warehouse) -> None:
    """Its run moves the cursors of production. The variable is a list, or a text with commas or spaces."""
    warehouse.land("Email Delivered", "delivered")
    code, output = run_dbt(
        warehouse.url,
        warehouse.project,
        *("run", "--select", "email_delivered", "--target", "dev", "--vars", "production_targets: ci, dev"),
        parsed_as=ADA,
    )
    assert code == 0, output
    assert "is not production" not in output
    assert warehouse.ids("iterable.email_delivered") == ["delivered"]


def open_development(connection: psycopg.Connection, ledger: str, schema: str) -> None:
    """Begin a development run as dbt does."""
    connection.execute("select raw.open_development(%s, %s, 'run', 3)", (ledger, [schema]))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("other", "Schema other holds tables of production, and this target is not production."),
        ("raw", "Schema raw holds tables of production"),
        ("x" * 64, "is longer than the 63 bytes that PostgreSQL keeps."),
    ],
)
def test_schemas_that_are_not_the_developers_are_refused(warehouse: Warehouse, schema: str, reason: str) -> None:
    """A target's schema may end in what makes the name of a source's schema."""
    for ledger, tables in ((schema, "dbt_x_iterable"), ("dbt_x_raw", schema)):
        with pytest.raises(psycopg.errors.RaiseException, match=reason), warehouse.owner.transaction():
            open_development(warehouse.owner, ledger, tables)


def test_a_table_that_no_development_run_made_is_left_alone(warehouse: Warehouse) -> None:
    """A schema of the developer may hold other tables."""
    with warehouse.owner.transaction(force_rollback=True):
        warehouse.owner.execute("create schema kept; create table kept.email_opened as select 1 as kept")
        open_development(warehouse.owner, "kept_raw", "kept")
        with pytest.raises(
            psycopg.errors.RaiseException, match="email_opened is there, and no development run made it"
        ):
            warehouse.owner.execute(
                "select raw.open_development_table("
                "'kept_raw', 'kept', 'email_opened', 'iterable', 'run', '[]', '{}', 'pg_catalog')"
            )


def test_a_restored_database_is_first_read_by_production(warehouse: Warehouse) -> None:
    """Only a run of production may give the events of another cluster their transaction ids."""
    with warehouse.owner.transaction(force_rollback=True):
        warehouse.owner.execute("update raw.cluster set system_identifier = 1")
        with pytest.raises(psycopg.errors.RaiseException, match="was restored, and no run of production"):
            open_development(warehouse.owner, "dbt_x_raw", "dbt_x_iterable")


def test_the_error_for_a_missing_right_has_the_grant_statement(warehouse: Warehouse) -> None:
    """The message has the statement that gives the right."""
    warehouse.owner.execute(f"revoke select on raw.properties from {ROLE}")
    code, output = warehouse.run("run", "--select", "email_opened")
    warehouse.owner.execute(f"grant select on raw.properties to {ROLE}")
    assert code == 2
    assert f'grant select on all tables in schema raw to "{ROLE}"' in output
    with warehouse.owner.transaction(force_rollback=True):
        warehouse.owner.execute(f'revoke create on database "{warehouse.url.rsplit("/", 1)[1]}" from {ROLE}')
        warehouse.owner.execute(f"set local role {ROLE}")
        reason = f"Schema dbt_x_iterable is not there, and role {ROLE} may not create it"
        with pytest.raises(psycopg.errors.RaiseException, match=reason) as told:
            open_development(warehouse.owner, "dbt_x_raw", "dbt_x_iterable")
    assert told.value.diag.message_hint is not None
    assert f"create schema dbt_x_iterable authorization {ROLE}" in told.value.diag.message_hint


def test_a_sample_is_refused_with_the_name_of_the_variable(warehouse: Warehouse) -> None:
    """The variable development_days takes the place of --sample."""
    code, output = warehouse.run("run", "--sample", "3 days", "--select", "email_opened")
    assert code == 2
    assert "development_days" in output


def test_the_first_transaction_of_a_time_is_found_by_the_index(warehouse: Warehouse) -> None:
    """The function finds the first transaction at or after a time, among many of other times."""
    with warehouse.owner.transaction(force_rollback=True):
        warehouse.owner.execute("delete from raw.events")
        xids = [
            row[0]
            for row in warehouse.owner.execute(
                """
            insert into raw.events (load_xid, source, collection, message_id, payload, landed_at)
            select
                (10 + 3 * n)::text::xid8, 'iterable', 'email_opened', 'n' || n, '{}',
                now() - (100 - n) * interval '1 day'
            from generate_series(1, 100) as n
            returning load_xid
            """
            )
        ]
        find = "select raw.find_transaction(now() - %s * interval '1 day' - interval '1 hour')"
        for days in (0, 1, 7, 25):
            (found,) = warehouse.owner.execute(find, (days,)).fetchone() or (None,)
            older = [xid for xid in xids if int(xid) < int(found)]
            assert len(older) == len(xids) - days - 1
        warehouse.owner.execute("update raw.cluster set adopted_at = now()")
        assert warehouse.owner.execute(find, (7,)).fetchone() == ("1",)
