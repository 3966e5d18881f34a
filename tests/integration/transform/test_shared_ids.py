"""One id in two collections: both tables keep a row, tracks keeps the first, and `shared_ids` counts the others."""

import json
from collections.abc import Iterator

import psycopg
import pytest

from loader.postgres.database import Database
from loader.settings import Settings
from tests.conftest import loader_here
from tests.support.dbt_runs import copied_project, run, run_dbt
from tests.support.factories import insert_event
from tests.support.served_tables import everything, law

MODELS = ("email_delivered", "email_opened", "found_collections", "tracks")


@pytest.fixture
def reader(small: Database) -> Iterator[psycopg.Connection]:
    """Return a connection in autocommit."""
    with small.connect(autocommit=True) as connection:
        yield connection


def in_tracks(connection: psycopg.Connection) -> list[tuple[str, str]]:
    """Return the ids of tracks, each with its event."""
    return connection.execute("select id, event from iterable.tracks order by id").fetchall()


def test_a7_an_id_counts_once_a_table(reader: psycopg.Connection, small: Database, small_settings: Settings) -> None:
    """Rows that tracks lacks for this reason count as `shared_ids`. Status shows them, and the law holds."""
    insert_event(reader, "email_opened", "a")
    insert_event(reader, "email_delivered", "b")
    insert_event(reader, "email_opened", "c")
    run(small, small_settings, *MODELS)
    assert law(reader)["shared_ids"] == 0
    assert "tracks lacks" not in loader_here(small_settings)("status").stdout

    insert_event(reader, "email_delivered", "a")
    insert_event(reader, "email_opened", "a")
    insert_event(reader, "email_opened", "b")
    run(small, small_settings, *MODELS)
    assert in_tracks(reader) == [("a", "email_opened"), ("b", "email_delivered"), ("c", "email_opened")]
    assert reader.execute("select id from iterable.email_opened order by id").fetchall() == [("a",), ("b",), ("c",)]
    assert reader.execute("select id from iterable.email_delivered order by id").fetchall() == [("a",), ("b",)]
    numbers = law(reader)
    assert (numbers["in_collections"], numbers["duplicates"], numbers["shared_ids"]) == (5, 1, 2)

    loader = loader_here(small_settings)
    shown = loader("status")
    assert shown.returncode == 0
    assert "tracks lacks 2 rows: an event of another name has landed first with the same id." in shown.stdout
    told = json.loads(loader("status", "--json").stdout)["conservation"][0]
    assert (told["shared_ids"], told["holds"]) == (2, True)

    before = everything(reader)
    run(small, small_settings, *MODELS, full_refresh=True)
    assert everything(reader) == before
    assert law(reader)["shared_ids"] == 2


def test_a7_shared_ids_are_exact_while_a_table_is_ahead_of_tracks(
    reader: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """Rows that only wait for tracks are not shared ids, even if the counts are equal."""
    insert_event(reader, "email_opened", "a")
    insert_event(reader, "email_delivered", "b")
    run(small, small_settings, *MODELS)
    insert_event(reader, "email_opened", "c")
    insert_event(reader, "email_opened", "b")
    run(small, small_settings, "email_opened")
    assert law(reader)["shared_ids"] == 1
    run(small, small_settings, "tracks")
    assert law(reader)["shared_ids"] == 1
    insert_event(reader, "email_delivered", "d")
    run(small, small_settings, "tracks")
    assert law(reader)["shared_ids"] == 1


def test_a7_a_late_commit_of_another_collection_takes_the_row_of_tracks(
    reader: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """The first landed event counts, even if its transaction commits after a run has used the other event."""
    with small.connect() as late:
        insert_event(late, "email_delivered", "a")
        insert_event(reader, "email_opened", "a")
        run(small, small_settings, *MODELS)
        assert in_tracks(reader) == [("a", "email_opened")]
        late.commit()
    run(small, small_settings, *MODELS)
    assert in_tracks(reader) == [("a", "email_delivered")]
    assert law(reader)["shared_ids"] == 1


def test_a7_an_event_without_a_table_may_share_an_id_too(
    reader: psycopg.Connection, small: Database, small_settings: Settings
) -> None:
    """If it landed first, tracks has it and lacks the other event. If it landed second, it is a duplicate."""
    insert_event(reader, "", "a")
    insert_event(reader, "email_opened", "a")
    insert_event(reader, "email_opened", "b")
    insert_event(reader, "", "b")
    run(small, small_settings, *MODELS)
    assert reader.execute("select id, event from iterable.tracks order by id").fetchall() == [
        ("a", None),
        ("b", "email_opened"),
    ]
    numbers = law(reader)
    assert (numbers["in_tracks_only"], numbers["shared_ids"], numbers["duplicates"]) == (1, 1, 1)


DAMAGES = {
    "delete from iterable.tracks where id = 'b'": ("b", "iterable.email_opened", "not in tracks"),
    "delete from iterable.email_opened where id = 'a'": ("a", "iterable.email_opened", "not in its table"),
    "update iterable.tracks set event = 'email_delivered' where id = 'b'": (
        "b",
        "iterable.email_delivered",
        "not in its table",
    ),
}


def test_a7_the_union_test_lists_shared_ids_and_fails_on_anything_else(
    served: Database, served_settings: Settings
) -> None:
    """A shared id is a warning with its row, and any other difference is an error."""
    with served.connect(autocommit=True) as reader:
        insert_event(reader, "email_opened", "a")
        insert_event(reader, "email_delivered", "a")
        insert_event(reader, "email_opened", "b")
        run(served, served_settings, "email_delivered", "email_opened", "tracks")
        project = copied_project(served_settings)
        union = ("test", "--select", "tracks,test_name:union_of_collections")
        code, output = run_dbt(served.url, project, *union)
        assert (code, "WARN 1 tracks_is_the_union" in output) == (0, True), output
        compiled = next(project.glob("target/compiled/*/models/iterable/tracks.yml/tracks_is_the_union.sql"))
        query = compiled.read_text(encoding="utf-8")
        shared = ("a", "iterable.email_delivered", "shared id")
        assert reader.execute(query).fetchall() == [shared]  # type: ignore[call-overload]
        for damage, problem in DAMAGES.items():
            with reader.transaction(force_rollback=True):
                reader.execute(damage)  # type: ignore[call-overload]
                listed = reader.execute(query).fetchall()  # type: ignore[call-overload]
            assert problem in listed, damage
        reader.execute(next(iter(DAMAGES)))  # type: ignore[call-overload]
        code, output = run_dbt(served.url, project, *union)
        assert (code, "FAIL" in output) == (1, True), output
