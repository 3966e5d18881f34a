"""Sources and write keys from the command line: the senders, their schemas and their keys."""

import hashlib
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Loader

Done = subprocess.CompletedProcess[str]


def told(done: Done) -> list[str]:
    """Return the lines that a command wrote to stderr, and check that they contain no traceback."""
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr.splitlines()


def read(done: Done) -> Any:
    """Return the JSON that a command printed."""
    assert (done.returncode, told(done)) == (0, [])
    return json.loads(done.stdout)


def test_a_source_is_added_with_a_key(run_here: Loader, connection: psycopg.Connection) -> None:
    """The command prints the source's name, its schema and a write key, and nothing else.

    A digest of the key is stored.
    """
    added = read(run_here("source", "add", "Customer.io", "--json"))
    assert set(added) == {"name", "schema", "write_key"}
    assert (added["name"], added["schema"]) == ("Customer.io", "customerio")
    assert re.fullmatch(r"[\w-]{32}", added["write_key"])
    stored = connection.execute(
        "select name, schema_name, key_sha256, write_keys::text"
        " from raw.sources join raw.write_keys on source_id = sources.id"
    ).fetchall()
    digest = hashlib.sha256(added["write_key"].encode()).digest()
    assert [row[:3] for row in stored] == [("Customer.io", "customerio", digest)]
    assert added["write_key"] not in stored[0][3]


def test_d1_stdout_has_only_the_key(run_here: Loader) -> None:
    """A script captures the key. A person reads on stderr that the key is shown only now."""
    added = run_here("source", "add", "My Shop")
    assert re.fullmatch(r"\w[\w-]{31}\n", added.stdout)
    assert told(added) == ["Source My Shop feeds schema my_shop. Its write key, shown only now:"]
    another = run_here("key", "add", "My Shop", "--label", "phone")
    assert re.fullmatch(r"\w[\w-]{31}\n", another.stdout)
    assert told(another) == ["A write key for source My Shop, shown only now:"]


def test_d1_key_add_needs_no_source_name_with_one_source(run_here: Loader) -> None:
    """The advice of a 401 works as it is written. With several sources, the error names them."""
    made = run_here("key", "add")
    assert (made.returncode, told(made)) == (0, ["A write key for source iterable, shown only now:"])
    assert run_here("source", "add", "Shop").returncode == 0
    refused = run_here("key", "add")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert told(refused) == [
        "Error: There are several sources (Iterable, Shop). Name the source with `loader key add NAME`."
    ]


def test_d1_the_advice_for_an_existing_source_works_as_typed(run_here: Loader) -> None:
    """Names with spaces and quotes are quoted for a shell."""
    for name in ("Iterable", "Bob's Shop"):
        run_here("source", "add", name, "--schema", "shop")
        (line,) = told(run_here("source", "add", name))
        advised = re.search(r"`loader (.*?)`", line)
        assert advised
        assert run_here(*shlex.split(advised[1])).returncode == 0


def test_sources_are_listed(run_here: Loader) -> None:
    """Each source has its schema, its labels and the number of its keys."""
    assert run_here("source", "add", "Shop", "--label", "environment:prod", "--label", "team:crm").returncode == 0
    rows = read(run_here("source", "list", "--json"))
    assert [(row["name"], row["schema"], row["labels"], row["keys"]) for row in rows] == [
        ("Iterable", "iterable", {}, 0),
        ("Shop", "shop", {"environment": "prod", "team": "crm"}, 1),
    ]
    shown = run_here("source", "list").stdout.splitlines()
    assert len(shown) == 4
    assert {"environment:prod", "team:crm"} < set(shown[3].split())


def test_vector_05_two_sources_cannot_feed_one_schema(run_here: Loader, connection: psycopg.Connection) -> None:
    """A second source with the schema of another source is refused, whether derived or requested."""
    for arguments in (["iterable"], ["ITERABLE"], ["Other", "--schema", "iterable"]):
        done = run_here("source", "add", *arguments)
        assert done.returncode == 2
        (line,) = told(done)
        assert line.startswith("Error: Schema iterable belongs to source Iterable: two sources cannot feed one schema.")
    assert connection.execute("select name from raw.sources").fetchall() == [("Iterable",)]
    assert run_here("source", "add", "iterable", "--schema", "iterable_2").returncode == 0


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("shop", "shop_marts", "does not go with source First"),
        ("shop_marts", "shop", "does not go with source First"),
        ("shop", "s" * 58, "leaves no room for the schema of its marts"),
    ],
)
def test_a_schema_that_clashes_with_marts_is_refused(run_here: Loader, first: str, second: str, reason: str) -> None:
    """The marts of a source have the schema of the source with `_marts` at the end."""
    assert run_here("source", "add", "First", "--schema", first).returncode == 0
    refused = run_here("source", "add", "Second", "--schema", second)
    assert refused.returncode == 2
    assert reason in refused.stderr


def test_a_source_is_added_once(run_here: Loader) -> None:
    """The error for a used name gives the command for another key."""
    done = run_here("source", "add", "Iterable")
    assert done.returncode == 2
    assert told(done)[0].startswith("Error: Source Iterable exists already; `loader key add")


def test_a_schema_with_tables_but_no_source_is_refused(run_here: Loader, connection: psycopg.Connection) -> None:
    """A schema with tables belongs to another user. An empty schema may have been made for the loader."""
    connection.execute("create schema taken; create table taken.orders (id int); create schema prepared")
    done = run_here("source", "add", "Taken")
    assert (done.returncode, told(done)) == (
        2,
        ["Error: Schema taken exists, and no source has this schema. Choose another schema with --schema."],
    )
    assert read(run_here("source", "add", "Prepared", "--json"))["schema"] == "prepared"


@pytest.mark.parametrize(
    "schema", ["raw", "public", "information_schema", "pg_catalog", "pg_mine", "Shop", "1a", "a-b", "a" * 64]
)
def test_an_invalid_schema_name_is_refused(run_here: Loader, schema: str) -> None:
    """The database's own schemas are refused, and so are names that need quotes or would be cut.

    The error has a reason.
    """
    done = run_here("source", "add", "Some Source", "--schema", schema)
    assert done.returncode == 2
    (line,) = told(done)
    assert line.startswith(("Error: Schema", f"Error: {schema} cannot be the name of a schema"))


def test_a_name_without_letters_needs_a_schema(run_here: Loader) -> None:
    """If no schema can be derived, the error asks for a schema."""
    done = run_here("source", "add", "日本語")
    assert (done.returncode, len(told(done))) == (2, 1)
    assert "--schema" in told(done)[0]
    assert read(run_here("source", "add", "日本語", "--schema", "japan", "--json"))["name"] == "日本語"


@pytest.mark.parametrize("label", ["prod", "a:b:c", "1a:b", "a:", ":b", "a:b c", "a:ü"])
def test_an_invalid_label_is_refused(run_here: Loader, connection: psycopg.Connection, label: str) -> None:
    """A label is a key and a value of letters, digits and hyphens. With an invalid label, nothing is added."""
    done = run_here("source", "add", "Shop", "--label", "environment:prod", "--label", label)
    assert (done.returncode, len(told(done))) == (2, 1)
    assert label in told(done)[0]
    assert connection.execute("select count(*) from raw.sources").fetchone() == (1,)


def test_keys_are_added_and_revoked(run_here: Loader, connection: psycopg.Connection) -> None:
    """A source can have several keys, so a key can be replaced while another works. A revoked key stays listed."""
    first = read(run_here("key", "add", "Iterable", "--label", "old", "--json"))
    second = read(run_here("key", "add", "iterable", "--label", "new", "--json"))
    assert set(first) == {"source", "write_key"}
    assert first["write_key"] != second["write_key"]

    done = run_here("key", "revoke", "1")
    assert (done.returncode, done.stdout) == (0, "Key 1 is revoked.\n")
    rows = read(run_here("key", "list", "--json"))
    assert [(row["id"], row["source"], row["label"], row["revoked_at"] is None) for row in rows] == [
        (1, "Iterable", "old", False),
        (2, "Iterable", "new", True),
    ]
    assert read(run_here("source", "list", "--json"))[0]["keys"] == 1
    assert not {first["write_key"], second["write_key"]} & set(run_here("key", "list").stdout.split())

    revoked = rows[0]["revoked_at"]
    assert run_here("key", "revoke", "1").returncode == 0
    assert read(run_here("key", "list", "--json"))[0]["revoked_at"] == revoked


def test_key_list_can_show_the_keys_of_one_source(run_here: Loader) -> None:
    """--source lists only the keys of that source."""
    read(run_here("source", "add", "Shop", "--json"))
    read(run_here("key", "add", "Iterable", "--json"))
    assert [row["source"] for row in read(run_here("key", "list", "--json"))] == ["Shop", "Iterable"]
    assert [row["source"] for row in read(run_here("key", "list", "--source", "shop", "--json"))] == ["Shop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["key", "add", "Nobody"], "There is no source Nobody. The sources are: Iterable."),
        (["key", "list", "--source", "Nobody"], "There is no source Nobody. The sources are: Iterable."),
        (["key", "revoke", "99"], "There is no key 99. `loader key list` shows the keys."),
    ],
)
def test_an_unknown_source_or_key_gets_an_error(run_here: Loader, arguments: list[str], message: str) -> None:
    """An unknown source or key is the caller's mistake."""
    done = run_here(*arguments)
    assert (done.returncode, told(done)) == (2, [f"Error: {message}"])


def test_empty_lists_give_the_next_step_or_empty_json(run_here: Loader, connection: psycopg.Connection) -> None:
    """An empty list gives the next step, and in JSON it is an empty list."""
    connection.execute("truncate raw.sources, raw.write_keys")
    assert run_here("source", "list").stdout == "There is no source yet. `loader source add Iterable` adds a source.\n"
    assert read(run_here("source", "list", "--json")) == []
    assert run_here("key", "list").stdout == "There is no write key yet. `loader key add` makes a write key.\n"
    assert read(run_here("key", "list", "--json")) == []


def test_load_needs_a_source_name_with_several_sources(
    run_here: Loader, tmp_path: Path, connection: psycopg.Connection
) -> None:
    """With one source a load needs no name. With two sources it needs a source's name or schema."""
    path = tmp_path / "events.ndjson"
    path.write_text('{"type":"track","event":"Open","userId":"u","messageId":"m"}\n', encoding="utf-8")
    connection.execute("insert into raw.sources (name, schema_name) values ('My Shop', 'shop')")
    done = run_here("load", str(path))
    assert (done.returncode, told(done)) == (
        2,
        ["Error: There are several sources (Iterable, My Shop). Name the source with --source."],
    )
    assert run_here("load", "--source", "My Shop", str(path)).returncode == 0
    assert run_here("load", "--source", "shop", str(path)).stdout == "1 file loaded before and unchanged since\n"
    assert connection.execute("select source from raw.events").fetchall() == [("shop",)]
