"""Objects of other roles that refuse rows of a served table: the table is held, and the others are filled."""

from collections.abc import Iterator

import pytest
import yaml

from loader.postgres.database import Database
from loader.settings import Settings
from loader.transform.dbt import transform
from tests.conftest import loader_here
from tests.integration.transform.test_found_columns import Warehouse
from tests.support.dbt_runs import copied_project, run_dbt
from tests.support.served_tables import everything, law

DUE = "update raw.held_tables set next_try_at = clock_timestamp()"
# By kind of object: the SQL that makes it on a table, its name in the reason, and the SQL that removes it.
REFUSERS: dict[str, tuple[str, str, str]] = {
    "check": (
        "alter table iterable.{t} add constraint {t}_small check (size < 10)",
        'violates check constraint "{t}_small"',
        "alter table iterable.{t} drop constraint {t}_small",
    ),
    "unique constraint": (
        "alter table iterable.{t} add constraint {t}_once unique (user_id)",
        'violates unique constraint "{t}_once"',
        "alter table iterable.{t} drop constraint {t}_once",
    ),
    "deferred constraint": (
        "alter table iterable.{t} add constraint {t}_later unique (user_id) deferrable initially deferred",
        'violates unique constraint "{t}_later"',
        "alter table iterable.{t} drop constraint {t}_later",
    ),
    "exclusion": (
        "alter table iterable.{t} add constraint {t}_alone exclude (user_id with =)",
        'violates exclusion constraint "{t}_alone"',
        "alter table iterable.{t} drop constraint {t}_alone",
    ),
    "foreign key": (
        """create table public.{t}_sizes (size bigint primary key);
        insert into public.{t}_sizes values (1);
        alter table iterable.{t} add constraint {t}_known foreign key (size) references public.{t}_sizes""",
        'violates foreign key constraint "{t}_known"',
        "alter table iterable.{t} drop constraint {t}_known",
    ),
    "not null": (
        "alter table iterable.{t} alter column vip set not null",
        'null value in column "vip" of relation "{t}"',
        "alter table iterable.{t} alter column vip drop not null",
    ),
    "policy": (
        """create policy {t}_seen on iterable.{t} for select using (true);
        alter table iterable.{t} enable row level security, force row level security""",
        'violates row-level security policy for table "{t}"',
        "alter table iterable.{t} disable row level security, no force row level security",
    ),
    "rule": (
        "create rule {t}_noted as on insert to iterable.{t} do also notify seen",
        "cannot be used with table that has INSERT or UPDATE rules",
        "drop rule {t}_noted on iterable.{t}",
    ),
    "trigger": (
        """create function public.{t}_refuse() returns trigger language plpgsql as
        $$ begin raise exception 'no % for %', new.size, new.secret; end $$;
        create trigger {t}_refused before insert on iterable.{t} for each row execute function {t}_refuse()""",
        "PL/pgSQL function {t}_refuse() raised an error, SQLSTATE P0001",
        "drop trigger {t}_refused on iterable.{t}",
    ),
    "failing trigger": (
        """create function public.{t}_fail() returns trigger language plpgsql as
        $$ begin insert into nowhere values (new.secret); end $$;
        create trigger {t}_failed after insert on iterable.{t} for each row execute function {t}_fail()""",
        "PL/pgSQL function {t}_fail() raised an error, SQLSTATE 42P01",
        "drop trigger {t}_failed on iterable.{t}",
    ),
    "generated column": (
        "alter table iterable.{t} add column part numeric generated always as (1 / (size - 12)) stored",
        "a value that an object on the table refuses: SQLSTATE 22012",
        "alter table iterable.{t} drop column part",
    ),
    "generated column of a name": (
        "alter table iterable.{t} add column note text generated always as ('x') stored",
        'cannot insert a non-DEFAULT value into column "note"',
        "alter table iterable.{t} drop column note",
    ),
    "trigger with a code": (
        """create function public.{t}_quote() returns trigger language plpgsql as
        $$ begin raise exception 'no %', new.secret using errcode = '0A000', detail = new.secret; end $$;
        create trigger {t}_quoted before insert on iterable.{t} for each row execute function {t}_quote()""",
        "PL/pgSQL function {t}_quote() raised an error, SQLSTATE 0A000",
        "drop trigger {t}_quoted on iterable.{t}",
    ),
    "expression index": (
        "create index {t}_number on iterable.{t} ((secret::int))",
        "a value that an object on the table refuses: SQLSTATE 22P02",
        "drop index iterable.{t}_number",
    ),
}
EVENTS = {kind: f"Has {kind}" for kind in REFUSERS}
TABLES = {kind: event.lower().replace(" ", "_") for kind, event in EVENTS.items()}


@pytest.fixture
def warehouse(small: Database, small_settings: Settings) -> Iterator[Warehouse]:
    """Return a warehouse with few models."""
    with small.connect(autocommit=True) as connection:
        yield Warehouse(small, small_settings, connection)


def held(warehouse: Warehouse) -> dict[str, str]:
    """Return the reasons of held tables, by name."""
    return dict(warehouse.rows("select model, reason from raw.held_tables where held = 'fill'"))


def test_b2_objects_that_refuse_rows_end_no_run(warehouse: Warehouse) -> None:
    """Each such table is unchanged and named with its object. The others are filled, and waiting rows land later."""
    for event in ("Healthy", *EVENTS.values(), "Zebra"):
        warehouse.land({"size": 1, "vip": True, "secret": "7"}, event=event)
    warehouse.run()
    for kind, (making, _, _) in REFUSERS.items():
        warehouse.connection.execute(making.format(t=TABLES[kind]).encode())
    for event in ("Healthy", *EVENTS.values(), "Zebra"):
        warehouse.land({"size": 12, "secret": "hunter2", "note": "n"}, event=event)
    warehouse.run()

    for table in ("healthy", "zebra"):
        assert warehouse.rows(f"select count(*) from iterable.{table}") == [(2,)]
    reasons = held(warehouse)
    for kind, (_, words, _) in REFUSERS.items():
        table = TABLES[kind]
        assert warehouse.rows(f"select count(*) from iterable.{table}") == [(1,)], kind
        assert words.format(t=table) in reasons.pop(table), kind
    assert reasons == {}
    assert law(warehouse.connection)["waiting"] == len(REFUSERS)
    status = loader_here(warehouse.settings)("status")
    assert "has_check_small" in status.stdout
    assert "hunter2" not in status.stdout
    done = loader_here(warehouse.settings)("transform")
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr

    for kind, (_, _, removing) in REFUSERS.items():
        warehouse.connection.execute(removing.format(t=TABLES[kind]).encode())
    warehouse.connection.execute(DUE)
    warehouse.run()
    assert held(warehouse) == {}
    assert law(warehouse.connection)["waiting"] == 0
    before = everything(warehouse.connection)
    warehouse.run(full_refresh=True)
    assert everything(warehouse.connection) == before


def test_b2_objects_that_keep_rows_end_no_full_refresh(warehouse: Warehouse) -> None:
    """Tables with such objects keep their rows, and the others are rebuilt."""
    warehouse.land({"size": 1}, {"size": 2})
    warehouse.land({"size": 1}, event="Order Placed")
    warehouse.land({"size": 1}, event="Zebra")
    warehouse.run()
    warehouse.connection.execute("""
        create table public.notes (id varchar references iterable.email_opened);
        insert into public.notes values ('e1');
        create rule kept as on delete to iterable.order_placed do instead nothing;
    """)
    filled = transform(warehouse.database, warehouse.settings, full_refresh=True)
    assert not [table for table in filled if table.error]
    reasons = held(warehouse)
    assert "violates RESTRICT setting of foreign key constraint" in reasons["email_opened"] or (
        'violates foreign key constraint "notes_id_fkey"' in reasons["email_opened"]
    )
    assert "rows that were to be deleted are still there" in reasons["order_placed"]
    assert warehouse.rows("select full_refresh from raw.syncs where model = 'zebra' order by started_at") == [
        (True,),
        (True,),
    ]
    assert warehouse.rows("select count(*) from iterable.email_opened") == [(2,)]
    warehouse.connection.execute("drop table public.notes; drop rule kept on iterable.order_placed")
    warehouse.run(full_refresh=True)
    assert held(warehouse) == {}


def test_b2_notes_give_the_number_of_rows_that_an_object_left_out(warehouse: Warehouse) -> None:
    """The run continues, and its notes give the number of events without a row."""
    for event in ("Email Opened", "Email Delivered"):
        warehouse.land({}, event=event)
    warehouse.run()
    warehouse.connection.execute("""
        create rule ignored as on insert to iterable.email_opened do instead nothing;
        create function public.skip() returns trigger language plpgsql as 'begin return null; end';
        create trigger ignored before insert on iterable.email_delivered for each row execute function skip();
    """)
    for event in ("Email Opened", "Email Delivered"):
        warehouse.land({}, {}, event=event)
    done = loader_here(warehouse.settings)("transform")
    for table in ("email_opened", "email_delivered"):
        note = f"iterable.{table}: a rule or a trigger on the table left out 2 events."
        assert f"Note: {note}" in done.stderr
        latest = f"select note from raw.syncs where model = '{table}' order by started_at desc limit 1"
        assert warehouse.rows(latest) == [(note,)]


def test_b2_an_object_that_refuses_changed_rows_keeps_the_type(warehouse: Warehouse) -> None:
    """A trigger refuses updates, so a column whose wider type changes rows keeps its type. It is widened later."""
    warehouse.land({"coupon": 7})
    warehouse.land({"coupon": 7.5}, event="Email Delivered")
    warehouse.run()
    warehouse.land({"coupon": "7.0"}, {"coupon": "x"})
    warehouse.run()
    assert warehouse.rows("select coupon from iterable.email_opened order by id") == [("7",), ("7.0",), ("x",)]
    warehouse.connection.execute("""
        create function public.refuse() returns trigger language plpgsql as
        $$ begin raise exception 'no'; end $$;
        create trigger refused before update on iterable.email_delivered for each statement execute function refuse();
    """)
    warehouse.land({"coupon": "y"}, event="Email Delivered")
    warehouse.run()
    assert warehouse.type_of("email_delivered", "coupon") == "numeric"
    assert warehouse.rows("select coupon from iterable.email_delivered order by id") == [(7.5,), (None,)]
    [(in_the_way, next_try)] = warehouse.rows(
        "select in_the_way, next_try_at > now() from raw.columns where wanted_type is not null"
    )
    assert "refuse() raised an error" in in_the_way
    assert next_try
    warehouse.connection.execute("drop trigger refused on iterable.email_delivered")
    warehouse.run(widen=True)
    assert warehouse.rows("select coupon from iterable.email_delivered order by id") == [("7.5",), ("y",)]
    assert warehouse.rows("select * from raw.mismatches") == []


def test_b2_a_policy_that_fails_ends_no_run(warehouse: Warehouse) -> None:
    """The policy fails a run that only reads the table, too."""
    refused = {
        "order_placed": (
            "user_id = current_setting('app.user')",
            'unrecognized configuration parameter "app.user"',
        ),
        "order_sent": (
            "exists (select from iterable.order_sent)",
            'infinite recursion detected in policy for relation "order_sent"',
        ),
    }
    for table in refused:
        warehouse.land({"size": 1}, event=table)
    warehouse.run()
    for table, (condition, _) in refused.items():
        warehouse.connection.execute(
            f"create policy own on iterable.{table} using ({condition});"
            f"alter table iterable.{table} enable row level security, force row level security".encode()
        )
        warehouse.land({"size": 2}, event=table)
    warehouse.land({}, event="Zebra")
    warehouse.run()
    assert held(warehouse) == {table: reason for table, (_, reason) in refused.items()}
    assert warehouse.rows("select count(*) from iterable.zebra") == [(1,)]
    for table in refused:
        warehouse.connection.execute(f"alter table iterable.{table} disable row level security".encode())
    warehouse.connection.execute(DUE)
    warehouse.run()
    for table in refused:
        assert warehouse.rows(f"select size from iterable.{table} order by id") == [(1,), (2,)]


DEFERRED = "alter table iterable.{} add constraint once unique (coupon) deferrable initially deferred"


def test_b2_a_deferred_constraint_that_refuses_changed_rows_keeps_the_type(warehouse: Warehouse) -> None:
    """The run checks it before the commit and can still undo the wider type."""
    warehouse.land({"coupon": 7}, event="Order Placed")
    warehouse.run()
    warehouse.connection.execute("create view public.coupons as select coupon from iterable.order_placed")
    warehouse.land({"coupon": "x"}, {"coupon": "x"}, event="Order Placed")
    warehouse.run()
    warehouse.connection.execute("drop view public.coupons")
    warehouse.connection.execute(DEFERRED.format("order_placed").encode())
    warehouse.land({"coupon": "y"}, event="Order Placed")
    warehouse.land({}, event="Zebra")
    warehouse.run()
    assert warehouse.rows("select coupon from iterable.order_placed order by id") == [(7,), (None,), (None,), (None,)]
    assert warehouse.rows("select count(*) from iterable.zebra") == [(1,)]
    assert warehouse.rows("select in_the_way from raw.columns where wanted_type is not null") == [
        ('duplicate key value violates unique constraint "once"',)
    ]


def test_b2_a_deferred_constraint_that_refuses_a_late_column_holds_the_table(warehouse: Warehouse) -> None:
    """This also holds without new events."""
    warehouse.land({}, {}, event="Order Placed")
    warehouse.run()
    with warehouse.database.connect() as reader:
        reader.execute("select from iterable.order_placed")
        warehouse.land({"coupon": 7}, {"coupon": 7}, event="Order Placed")
        warehouse.run()
    assert warehouse.type_of("order_placed", "coupon") is None
    warehouse.connection.execute("alter table iterable.order_placed add column coupon bigint")
    warehouse.connection.execute(DEFERRED.format("order_placed").encode())
    warehouse.connection.execute(DUE)
    warehouse.land({}, event="Zebra")
    warehouse.run()
    assert held(warehouse) == {"order_placed": 'duplicate key value violates unique constraint "once"'}
    assert warehouse.rows("select count(*) from iterable.zebra") == [(1,)]
    warehouse.connection.execute("alter table iterable.order_placed drop constraint once")
    warehouse.connection.execute(DUE)
    warehouse.run()
    assert held(warehouse) == {}
    assert warehouse.rows("select coupon from iterable.order_placed order by id") == [(None,), (None,), (7,), (7,)]


def test_b2_every_column_that_kept_its_type_waits_for_its_next_try(warehouse: Warehouse) -> None:
    """Undoing the wider types keeps the failures of the other columns."""
    warehouse.land({"a": 1, "b": 2})
    warehouse.run()
    warehouse.connection.execute("""
        create index by_a on iterable.email_opened ((a + 1));
        create function public.refuse() returns trigger language plpgsql as
        $$ begin raise exception 'no'; end $$;
        create trigger refused before update on iterable.email_opened for each statement execute function refuse();
    """)
    warehouse.land({"a": "x", "b": "y"})
    warehouse.run()
    assert warehouse.rows(
        "select column_name from raw.columns where wanted_type is not null and next_try_at > now() order by 1"
    ) == [("a",), ("b",)]


def test_b2_a_note_of_rows_left_out_keeps_the_note_of_a_loss(warehouse: Warehouse) -> None:
    """A rebuild that loses rows reports the loss, whatever other notes there are."""
    warehouse.land({}, {}, {})
    warehouse.run()
    warehouse.connection.execute("delete from raw.events where message_id = 'e1'")
    warehouse.connection.execute("""
        create function public.skip() returns trigger language plpgsql as 'begin return null; end';
        create trigger ignored before insert on iterable.email_opened for each row execute function skip()
    """)
    warehouse.run(full_refresh=True, allow_loss=True)
    [(note,)] = warehouse.rows(
        "select note from raw.syncs where model = 'email_opened' order by started_at desc limit 1"
    )
    assert "rows were lost" in note
    assert "left out 2 events" in note


def test_a_table_whose_owner_may_not_write_to_it_is_held(warehouse: Warehouse) -> None:
    """An owner can lose the right to write."""
    warehouse.land({}, event="Order Placed")
    warehouse.run()
    warehouse.connection.execute("revoke insert on iterable.order_placed from current_user")
    warehouse.land({}, event="Order Placed")
    warehouse.land({}, event="Zebra")
    warehouse.run()
    assert "may not write to iterable.order_placed" in held(warehouse)["order_placed"]
    assert warehouse.rows("select count(*) from iterable.zebra") == [(1,)]


def test_b2_a_column_of_a_domain_costs_only_the_values_it_refuses(warehouse: Warehouse) -> None:
    """Refused values are NULL and listed, as with any type that a person has given a column."""
    warehouse.land({"size": 1})
    warehouse.run()
    warehouse.connection.execute("""
        create domain public.small as bigint check (value < 10);
        alter table iterable.email_opened alter column size type public.small;
    """)
    warehouse.land({"size": 12}, {"size": 3})
    warehouse.run()
    assert warehouse.rows("select size from iterable.email_opened order by id") == [(1,), (None,), (3,)]
    assert warehouse.rows("select event_id, value from raw.mismatches") == [("e2", "12")]


def test_a_failing_model_of_a_team_is_an_error_and_not_held(warehouse: Warehouse) -> None:
    """A team with its own casts sees dbt's error, and the table is not held."""
    project = copied_project(warehouse.settings)
    model = project / "models" / "iterable" / "email_opened"
    yml = model.with_suffix(".yml")
    described = yaml.safe_load(yml.read_text(encoding="utf-8"))
    described["models"][0]["config"]["meta"] = {"found_columns": False}
    yml.write_text(yaml.safe_dump(described), encoding="utf-8")
    model.with_suffix(".sql").write_text(
        "select * from ({{ collection() }}) as rows where user_id::int > 0", encoding="utf-8"
    )
    warehouse.land({})
    code, output = run_dbt(warehouse.settings.database_url, project, "run", "--select", "email_opened")
    assert code == 1
    assert "invalid input syntax for type integer" in output
    assert held(warehouse) == {}
