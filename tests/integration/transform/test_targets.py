"""Development runs: a run on a target that is not production reads raw.events and writes to schemas of its own."""

import json
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
ROLE = "developer_ada"


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


@pytest.fixture(scope="module")
def developed(warehouse: Warehouse) -> tuple[str, dict[str, object], dict[str, object]]:
    """Return the output of the first development run, and the state of production before and after."""
    before = warehouse.state()
    code, output = warehouse.run("build")
    assert code == 0, output
    return output, before, warehouse.state()


def test_a_development_run_writes_to_schemas_of_its_own(
    warehouse: Warehouse, developed: tuple[str, dict[str, object], dict[str, object]]
) -> None:
    """Tables, cursors, reports and records of production stay as they were, by a role that may only read them."""
    _, before, after = developed
    assert after == before
    assert len(before) > 40
    assert warehouse.ids("dbt_ada_iterable.email_opened") == ["new1", "new2"]
    assert warehouse.ids("dbt_ada_other.email_opened") == ["elsewhere"]
    assert warehouse.ids("dbt_ada_iterable.tracks") == ["new1", "new2", "order"]


def test_a_development_run_makes_found_columns_and_found_tables(
    warehouse: Warehouse, developed: tuple[str, dict[str, object], dict[str, object]]
) -> None:
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


def test_the_first_run_names_its_schemas_and_the_variable(
    warehouse: Warehouse, developed: tuple[str, dict[str, object], dict[str, object]]
) -> None:
    """A later run says nothing more."""
    output = " ".join(developed[0].split())
    assert "Target dev is not production" in output
    for name in ("dbt_ada_iterable, dbt_ada_other", "dbt_ada_raw", "production_targets", "warehouse, prod, production"):
        assert name in output
    code, output = warehouse.run("run", "--select", "email_delivered")
    assert code == 0, output
    assert "is not production" not in output
