"""Objects of other roles on served tables: no run ends or drops an object because of them, and each is named."""

from collections.abc import Iterator

import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.dbt import transform
from loader.transform.waiting_columns import advise
from tests.conftest import loader_here
from tests.integration.transform.test_found_columns import Warehouse
from tests.support.dbt_runs import copied_project, run_dbt
from tests.support.served_tables import law

# By kind of object: the SQL that makes it on a table, and its name in the reason; none if the column can widen.
OBJECTS: dict[str, tuple[str, str]] = {
    "plain view": ("create view public.{t}_v as select vip from iterable.{t}", "{t}_v"),
    "materialized view": ("create materialized view public.{t}_m as select vip from iterable.{t}", "{t}_m"),
    "partial index": ("create index {t}_partial on iterable.{t} (id) where vip", "index iterable.{t}_partial"),
    "expression index": ("create index {t}_expression on iterable.{t} ((not vip))", "index iterable.{t}_expression"),
    "plain index": ("create index {t}_plain on iterable.{t} (vip)", ""),
    "check": ("alter table iterable.{t} add constraint {t}_true check (vip or id <> '')", "constraint {t}_true"),
    "generated column": (
        "alter table iterable.{t} add column negated boolean generated always as (not vip) stored",
        'generated column "negated"',
    ),
    "policy": ("create policy {t}_seen on iterable.{t} using (vip)", "policy {t}_seen"),
    "function": (
        """create function public.{t}_count() returns bigint
        begin atomic select count(*) from iterable.{t} where vip; end""",
        "function public.{t}_count()",
    ),
    "row type": ("create table public.{t}_holder (held iterable.{t})", "{t}_holder.held"),
    "trigger": (
        """create function public.{t}_pass() returns trigger language plpgsql as 'begin return new; end';
        create trigger {t}_noted before insert on iterable.{t}
        for each row when (new.vip) execute function {t}_pass()""",
        "trigger {t}_noted",
    ),
    "foreign key": (
        """alter table iterable.{t} add constraint {t}_unique unique (vip);
        create table public.{t}_other (vip boolean references iterable.{t} (vip))""",
        "{t}_other",
    ),
    "inheritance child": ("create table public.{t}_child () inherits (iterable.{t})", ""),
    "publication": (
        "create publication {t}_published for table iterable.{t} where (vip) with (publish = 'insert')",
        "publication {t}_published",
    ),
    "published columns": ("create publication {t}_listed for table iterable.{t} (id, vip)", "publication {t}_listed"),
    "rule": (
        """create table public.{t}_log (id varchar);
        create rule {t}_kept as on delete to iterable.{t} where old.vip do also insert into {t}_log values (old.id)""",
        "rule {t}_kept on table iterable.{t}",
    ),
    "sequence": ("create sequence iterable.{t}_numbers owned by iterable.{t}.vip", ""),
    "statistics": ("create statistics {t}_statistics on id, vip from iterable.{t}", ""),
    "default": ("alter table iterable.{t} alter column vip set default false", ""),
}
EVENTS = {kind: f"Has {kind}" for kind in OBJECTS}
TABLES = {kind: event.lower().replace(" ", "_") for kind, event in EVENTS.items()}
# Every object in the database except a run's own objects and those that belong to a listed object.
CATALOG = """
    with names as (select unnest(array['public', 'iterable']::regnamespace[]) as name)

    select pg_describe_object(classid, objid, 0)
    from (
        select 'pg_class'::regclass as classid, oid as objid from pg_class where relnamespace in (table names)
        union all
        select 'pg_constraint'::regclass, oid from pg_constraint where connamespace in (table names)
        union all
        select 'pg_proc'::regclass, oid from pg_proc where pronamespace in (table names)
        union all
        select 'pg_policy'::regclass, oid from pg_policy
        union all
        select 'pg_trigger'::regclass, oid from pg_trigger where not tgisinternal
        union all
        select 'pg_rewrite'::regclass, pg_rewrite.oid
        from pg_rewrite
        inner join pg_class on pg_class.oid = ev_class
        where relnamespace in (table names) and rulename <> '_RETURN'
        union all
        select 'pg_publication_rel'::regclass, oid from pg_publication_rel
        union all
        select 'pg_statistic_ext'::regclass, oid from pg_statistic_ext
    ) as objects
    order by 1
"""


@pytest.fixture
def warehouse(small: Database, small_settings: Settings) -> Iterator[Warehouse]:
    """Return a warehouse with few models."""
    with small.connect(autocommit=True) as connection:
        yield Warehouse(small, small_settings, connection)


def test_b2_objects_on_a_column_end_no_run(warehouse: Warehouse) -> None:
    """Every table gets its rows, and each object stays and is named. `loader widen` gives advice for each."""
    warehouse.land({}, event="Healthy")
    for event in EVENTS.values():
        warehouse.land({"vip": True}, event=event)
    warehouse.run()
    for kind, (statement, _) in OBJECTS.items():
        warehouse.connection.execute(statement.format(t=TABLES[kind]).encode())
    objects = warehouse.rows(CATALOG)

    for event in EVENTS.values():
        warehouse.land({"vip": "gold"}, event=event)
    warehouse.land({}, event="Healthy")
    warehouse.run()

    assert warehouse.rows("select count(*) from iterable.healthy") == [(2,)]
    assert warehouse.rows(CATALOG) == objects
    named = dict(warehouse.rows("select model, in_the_way from raw.columns where wanted_type is not null"))
    for kind, (_, words) in OBJECTS.items():
        table = TABLES[kind]
        assert warehouse.rows(f"select count(*) from iterable.{table}") == [(2,)], kind
        if words:
            assert words.format(t=table) in named[table], kind
            assert "gold" not in named[table], kind
            assert warehouse.type_of(table, "vip") == "boolean", kind
        else:
            assert table not in named, kind
            assert warehouse.type_of(table, "vip") == "text", kind
            assert warehouse.rows(f"select vip from only iterable.{table} order by 1") == [("gold",), ("true",)], kind
    told = law(warehouse.connection)
    assert (told["in_collections"], told["waiting"]) == (2 * len(OBJECTS) + 2, 0)

    done = loader_here(warehouse.settings)("widen")
    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()) == [
        f"iterable.{TABLES[kind]}.vip is text now." for kind in ("materialized view", "plain view")
    ]
    for kind, table in TABLES.items():
        if words := OBJECTS[kind][1]:
            line = next((line for line in done.stderr.splitlines() if f".{table}.vip " in line), "")
            assert "view" in kind or (words.format(t=table) in line and "run `loader widen` again" in line), line
    assert warehouse.rows(CATALOG) == objects


def test_b2_a_refused_widening_is_not_tried_in_every_run(warehouse: Warehouse) -> None:
    """After an object has forbidden the type, the next try is five minutes later. `loader widen` does not wait."""
    warehouse.land({"vip": True})
    warehouse.run()
    warehouse.connection.execute("create policy seen on iterable.email_opened using (vip)")
    warehouse.land({"vip": "gold"})
    warehouse.run()
    warehouse.connection.execute("drop policy seen on iterable.email_opened")
    warehouse.land({"vip": "silver"})
    warehouse.run()
    assert warehouse.type_of("email_opened", "vip") == "boolean"
    warehouse.run(widen=True)
    assert warehouse.rows("select vip from iterable.email_opened order by id") == [("true",), ("gold",), ("silver",)]
    assert warehouse.rows("select * from raw.mismatches") == []


def test_b3_a_run_rewrites_no_large_table(warehouse: Warehouse) -> None:
    """Over `LOADER_WIDEN_BYTES`, a run continues without the wider type, and `loader widen` rewrites the table."""
    warehouse.land({"vip": True})
    warehouse.run()
    warehouse.land({"vip": "gold"})
    small = warehouse.settings.model_copy(update={"widen_bytes": 1})
    assert not [table for table in transform(warehouse.database, small) if table.error]
    assert warehouse.rows("select vip from iterable.email_opened order by id") == [(True,), (None,)]
    [(in_the_way,)] = warehouse.rows("select in_the_way from raw.columns where wanted_type is not null")
    assert "the table's size" in in_the_way
    assert "`loader widen`" in advise(in_the_way)
    assert warehouse.rows("select event_id, value from raw.mismatches") == [("e2", "gold")]
    done = loader_here(small)("widen")
    assert (done.returncode, done.stdout) == (0, "iterable.email_opened.vip is text now.\n")
    assert warehouse.rows("select vip from iterable.email_opened order by id") == [("true",), ("gold",)]


def test_b4_a_run_replaces_views_of_dbt_and_warns_of_other_views(
    warehouse: Warehouse, small_settings: Settings
) -> None:
    """A run may replace the views that dbt itself replaces. Any other view stays, and every output names it."""
    warehouse.land({"vip": True})
    warehouse.land({"vip": True}, event="Email Delivered")
    warehouse.run()
    project = copied_project(small_settings)
    (project / "models" / "vips.sql").write_text(
        "{{ config(materialized='view') }} select id, vip from {{ ref('email_opened') }}", encoding="utf-8"
    )
    code, output = run_dbt(small_settings.database_url, project, "run")
    assert code == 0, output
    warehouse.connection.execute("create view public.theirs as select vip from iterable.email_delivered")

    warehouse.land({"vip": "gold"})
    warehouse.land({"vip": "gold"}, event="Email Delivered")
    code, output = run_dbt(small_settings.database_url, project, "run", "--exclude", "vips")
    assert code == 0, output
    assert warehouse.rows("select vip from public.vips order by id") == [("true",), ("gold",)]
    assert warehouse.rows("select vip from public.theirs") == [(True,), (None,)]
    assert "WARN" in output
    assert "iterable.email_delivered: column vip stays boolean instead of text. In the way: public.theirs." in output
    done = loader_here(warehouse.settings)("transform", "--select", "email_delivered")
    assert done.returncode == 0
    [line] = done.stderr.splitlines()
    assert line.startswith(
        "Warning: iterable.email_delivered: column vip waits for type text. In the way: public.theirs."
    )
    assert "public.theirs" in loader_here(warehouse.settings)("status").stdout
